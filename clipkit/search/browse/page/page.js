// The page: its state is the query; each change of it is an entry of the browser's history.

import { ask, finished, say } from "/ask.js";
import { card, detail, make } from "/cards.js";
import { difference, moveInSides, showComparison } from "/compare.js";
import { Grid } from "/grid.js";
import { DropList, entryOf } from "/list.js";
import { ImageMap } from "/map.js";

const $ = (id) => document.getElementById(id);
const EXPLAINED = {
  duplicates: "Pairs of images that look alike, the most similar first. “drop left” marks the left image of a pair.",
  outliers: "Images by their mean similarity to their ten most similar images. The image with the lowest similarity comes first.",
  captions: "Captions that least fit their image and the other captions of the image, the most doubtful first. If another image fits better, that image is shown on the right.",
  labels: "Images whose label differs from the label of most of their similar images, the most doubtful first. The image on the right is the most similar image with the suggested label.",
  map: "Similar images are near each other, but distances between groups that are far apart mean little. Draw around images to list them. Click a point to open its image.",
  list: "Images and captions that you have marked. The list is kept in this browser. No files are changed.",
};

const empty = () => ({ view: "all", words: "", minus: "", like: [], images: [], where: "", precision: "", at_least: 0.97, column: "", color: "", rows: [] });

// The query in the address, so that a view can be bookmarked and opened again.
function toHash(query) {
  const { images, like, rows, ...rest } = query, usual = empty();
  const parts = Object.entries(rest).filter(([name, value]) => value !== usual[name]);
  if (like.length) parts.push(["like", like.map((one) => one.row).join(",")]);
  return parts.length ? `#${new URLSearchParams(parts)}` : location.pathname;
}

function fromHash() {
  const query = empty(), given = new URLSearchParams(location.hash.slice(1));
  for (const name of ["words", "minus", "where", "precision", "column", "color"]) query[name] = given.get(name) || "";
  query.at_least = Number(given.get("at_least")) || query.at_least;
  query.like = (given.get("like") || "").split(",").filter((row) => /^\d+$/.test(row)).map((row) => ({ row: Number(row) }));
  const view = given.get("view");
  query.view = document.querySelector(`nav [data-view="${CSS.escape(view || "")}"]:not([hidden])`) ? view : query.view;
  return query;
}

const app = {
  index: 0, query: empty(), started: 0, position: -1,
  open(item) { this.opened = item; detail(this, item); },
  async openRow(row) {
    try {
      const query = { view: "rows", rows: [row] };
      this.open((await (await ask("/api/list", { query })).json()).items[0]);
    } catch (error) { say(error.message, true); }
  },
  like(item) { this.go({ ...this.query, view: searchView(), words: "", minus: "", images: [], like: [{ row: item.row, image: item.image }] }); },
  mark(item, marked) {
    this.list.set(item, marked, this.query.view, this.query.words);
    this.marked();
  },
  marked() {
    if (!this.list.save()) say("The list is too long to be kept in the browser; download the list before you close the page.", true);
    $("listed").textContent = this.list.entries.size;
    for (const element of document.querySelectorAll(".card")) {
      const { item } = element;
      if (!item) continue;
      element.classList.toggle("marked", this.list.has(item));
      const box = element.querySelector("input");
      if (box) box.checked = this.list.has(item);
    }
  },
  go(query, push = true) {
    if (push) history.pushState(query, "", toHash(query));
    this.query = query;
    show();
  },
};
const searchView = () => (app.query.view === "compare" ? "compare" : "search");
const grid = new Grid($("grid"), (item) => (item.text === undefined ? card(app, item) : difference(app, item)));
const map = new ImageMap(app, $("map"), (rows) => app.go({ ...app.query, rows: rows.slice(0, 20_000) }));

function asked(query) {
  const texts = (text) => (text.trim() ? [text.trim()] : []);
  const search = query.view === "search" || query.view === "compare";
  return {
    view: { compare: "search", map: "rows" }[query.view] || query.view, index: app.index, where: query.where,
    ...(search ? { words: texts(query.words), minus: texts(query.minus), like: query.like.map((one) => one.row),
      images: query.images.map((one) => one.id), precision: query.precision && query.view === "search" ? Number(query.precision) : null } : {}),
    ...(query.view === "labels" ? { column: query.column || app.about.labels[0] || "" } : {}),
    ...(query.view === "map" ? { rows: query.rows } : {}),
    ...(query.view === "duplicates" ? { at_least: query.at_least } : {}),
  };
}

function fill() {
  const { query } = app;
  for (const id of ["words", "minus", "where", "precision", "at_least"]) $(id).value = query[id];
  $("at_least_value").textContent = Number(query.at_least).toFixed(3);
  for (const button of document.querySelectorAll("nav button")) {
    button.toggleAttribute("aria-current", button.dataset.view === query.view);
    if (button.dataset.view === query.view) button.parentElement.scrollLeft = button.offsetLeft - 60;
  }
  $("about").textContent = EXPLAINED[query.view] || "";
  $("alike").hidden = query.view !== "duplicates";
  $("labelled").hidden = query.view !== "labels";
  $("column").value = query.column || app.about.labels[0] || "";
  $("color").value = query.color;
  for (const id of ["map", "sides"]) $(id).hidden = query.view !== { map: "map", sides: "compare" }[id];
  for (const id of ["select_all", "download", "download_view", "clear"]) $(id).hidden = true;
  $("command").replaceChildren();
  const parts = [];
  for (const kind of ["like", "images"]) {
    for (const one of query[kind]) {
      const shown = make("img", { src: kind === "like" ? `/${app.index}/thumbnail/${one.row}?v=${app.about.version}` : one.url, alt: "" });
      const button = make("button", { type: "button", title: "Remove from the query" }, shown, kind === "like" ? "like this ✕" : "your image ✕");
      button.addEventListener("click", () => app.go({ ...query, [kind]: query[kind].filter((other) => other !== one) }));
      parts.push(make("li", {}, button));
    }
  }
  $("parts").replaceChildren(...parts);
}

async function show() {
  const { query } = app, started = ++app.started, began = performance.now();
  fill();
  if (query.view !== "map" || !query.rows.length) scrollTo(0, 0);
  grid.reset(0, 1, null);
  app.position = -1;
  if (query.view === "list") return showList();
  const isShown = () => started === app.started;
  if (query.view === "compare") return showComparison(app, grid, asked(query), isShown);
  if (query.view === "map" && !(await map.load(query, isShown))) return;
  const body = asked(query), thumbnails = ["duplicates", "captions", "labels"].includes(query.view) ? 2 : 1;
  if (query.view === "search" && !(body.words.length || body.like.length || body.images.length)) {
    return say("Enter words, drop an image here, or press “like this” below an image.");
  }
  say("…");
  const slow = setTimeout(() => { if (query.view === "search") say("Searching; the first search loads the model…"); }, 1500);
  try {
    const fetched = async (start, count) => (await ask("/api/list", { query: body, start, count })).json();
    const found = await finished(() => fetched(0, 60), isShown, (one) => `Comparing all images: ${Math.round(100 * one.working)} %`);
    if (!found) return;
    grid.reset(found.total, thumbnails, fetched, found.items);
    $("select_all").hidden = $("download_view").hidden = !found.total || query.view === "all";
    $("download_view").onclick = () => downloadView(query, body, found.total);
    offerMarking();
    const noun = { duplicates: "pairs", captions: "captions" }[query.view] || "images";
    const none = query.view === "search" && query.precision ? "Nothing matches at this precision." : `No ${noun}.`;
    const best = query.view === "search" && found.total === 1000 ? "the best " : "";
    say(found.total ? `${best}${found.total.toLocaleString("en")} ${noun} · ${((performance.now() - began) / 1000).toFixed(2)} s` : none);
  } catch (error) {
    if (isShown()) say(error.message, true);
  } finally { clearTimeout(slow); }
}

function showList() {
  const items = app.list.items();
  grid.reset(items.length, 1, async (start, count) => ({ items: items.slice(start, start + count) }), items.slice(0, 60));
  say(items.length ? `${items.length.toLocaleString("en")} images and captions to drop` : "Nothing is marked yet; use “drop” below an image.");
  for (const id of ["download", "clear"]) $(id).hidden = !items.length;
  if (items.length) {
    $("command").replaceChildren("Download the list. Then write a copy of the data without the marked images and captions: ",
      make("code", {}, `clipkit data check ${app.about.source} --fix cleaned --drop drop.jsonl`),
      ". To keep an image or a caption, remove its line from the file first.");
  }
}

const MOST_MARKED = 1000, MOST_LISTED = 20_000;

function offerMarking() {
  const few = grid.total <= MOST_MARKED;
  $("select_all").textContent = few ? `Mark all ${grid.total} to drop` : "Mark the first 1,000 to drop";
  $("select_all").onclick = markAll;
}

async function markAll() {
  const { query } = app, body = asked(query), most = Math.min(grid.total, MOST_MARKED), added = [];
  try {
    for (let start = 0; start < most; start += 200) {
      const { items } = await (await ask("/api/list", { query: body, start, count: Math.min(200, most - start) })).json();
      for (const item of items.filter((one) => !app.list.has(one))) {
        app.list.set(item, true, query.view, query.words);
        added.push(item);
      }
    }
    say(`${added.length.toLocaleString("en")} marked; see the list under “To drop”`);
  } catch (error) { say(error.message, true); }
  app.marked();
  $("select_all").textContent = "Undo";
  $("select_all").onclick = () => {
    for (const item of added) app.list.set(item, false);
    app.marked();
    offerMarking();
  };
}

async function download(request) {
  try {
    const content = await (await ask("/api/drop", request)).blob();
    const link = make("a", { href: URL.createObjectURL(content), download: "drop.jsonl" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) { say(error.message, true); }
}

// Downloads a view as a list to drop, without marking it.
async function downloadView(query, body, total) {
  const most = Math.min(total, MOST_LISTED), entries = [];
  try {
    for (let start = 0; start < most; start += 200) {
      const { items } = await (await ask("/api/list", { query: body, start, count: Math.min(200, most - start) })).json();
      entries.push(...items.map((item) => entryOf(item, query.view, query.words)));
    }
    await download({ index: app.index, entries });
    say(`${entries.length.toLocaleString("en")} entries written to drop.jsonl. To write a copy of the data without them: clipkit data check ${app.about.source} --fix cleaned --drop drop.jsonl`);
  } catch (error) { say(error.message, true); }
}

async function searchImage(file) {
  if (!file) return;
  say("…");
  try {
    const { image } = await (await ask("/api/image", file, true)).json();
    app.go({ ...app.query, view: searchView(), words: "", like: [], images: [{ id: image, url: URL.createObjectURL(file) }] });
  } catch (error) { say(error.message, true); }
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox";
  if (event.key === "/" && !typing) { event.preventDefault(); $("words").focus(); $("words").select(); return; }
  if (typing || $("detail").open) return;
  const element = event.target.closest?.(".card"), position = element ? Number(element.dataset.position) : app.position;
  if (moveInSides(element, event.key)) return event.preventDefault();
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: grid.size.columns, ArrowUp: -grid.size.columns }[event.key];
  if (step && (position >= 0 || event.key === "ArrowDown")) {
    event.preventDefault();
    grid.focus(position >= 0 ? position + step : 0);
  } else if (element?.item && !element.item.index) {
    const { item } = element;
    if (event.key === "l") app.like(item);
    if (event.key === "x") app.mark(item, !app.list.has(item));
  }
}

function listen() {
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const { like, images } = app.query;
    const [words, minus, where, precision] = ["words", "minus", "where", "precision"].map((id) => $(id).value);
    const searching = words.trim() || like.length || images.length;
    app.go({ ...app.query, words, minus, where, precision, view: searching ? searchView() : app.query.view === "search" ? "all" : app.query.view });
  });
  for (const button of document.querySelectorAll("nav button")) {
    button.addEventListener("click", () => app.go({ ...app.query, view: button.dataset.view }));
  }
  $("at_least").addEventListener("input", () => { $("at_least_value").textContent = Number($("at_least").value).toFixed(3); });
  $("at_least").addEventListener("change", () => app.go({ ...app.query, at_least: Number($("at_least").value) }));
  for (const id of ["column", "color"]) $(id).addEventListener("change", () => app.go({ ...app.query, [id]: $(id).value }));
  $("download").addEventListener("click", () => download(app.list.request(app.index)));
  $("clear").addEventListener("click", () => {
    if (confirm(`Remove all ${app.list.entries.size} entries from the list?`)) { app.list.clear(); app.marked(); show(); }
  });
  $("file").addEventListener("change", () => { searchImage($("file").files[0]); $("file").value = ""; });
  addEventListener("paste", (event) => searchImage([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    searchImage(event.dataTransfer.files[0]);
  });
  addEventListener("keydown", keys);
  // A focused card that is scrolled out of view is removed; arrows continue from its position.
  $("grid").addEventListener("focusin", (event) => { app.position = Number(event.target.closest(".card").dataset.position); });
  addEventListener("popstate", (event) => app.go(event.state || fromHash(), false));
}

async function start() {
  try {
    const indexes = await (await ask("/api/about")).json();
    [app.abouts, app.about] = [indexes, indexes[0]];
    app.list = new DropList(app.about);
    document.title = `${app.about.name} – clipkit`;
    $("name").textContent = `${indexes.map((one) => one.name).join(" and ")} · ${app.about.images.toLocaleString("en")} images`;
    $("name").title = indexes.map((one) => one.model).join(", ");
    $("precise").hidden = !app.about.calibrated;
    const columns = ["image", "captions", ...Object.keys(app.about.columns)];
    $("column").replaceChildren(...app.about.labels.map((name) => make("option", { value: name }, name)));
    $("color").replaceChildren(...["", ...app.about.labels].map((name) => make("option", { value: name }, name || "nothing")));
    $("colored").hidden = document.querySelector("[data-view=labels]").hidden = !app.about.labels.length;
    document.querySelector("[data-view=compare]").hidden = indexes.length < 2;
    $("columns").textContent = `Columns: ${columns.join(", ")}. Operators: = != < > in like contains is null and or not.`;
    listen();
    app.marked();
    app.query = fromHash();
    history.replaceState(app.query, "");
    show();
  } catch (error) { say(error.message, true); }
}

start();
