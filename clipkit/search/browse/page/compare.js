// The results of one query in two indexes side by side, and the queries where they differ most.

import { ask, finished, say } from "/ask.js";
import { card, make } from "/cards.js";

function side(app, number, items) {
  const list = make("ol", {}, ...items.map((item, position) => {
    const shown = card(app, item, `rank ${position + 1} · other list: ${item.rank ?? "–"}`);
    shown.classList.toggle("alone", item.rank === null);
    return make("li", {}, shown);
  }));
  const { name, model } = app.abouts[number];
  list.setAttribute("aria-label", `Results of ${name}`);
  return make("section", {}, make("h2", { title: model }, name), items.length ? list : make("p", {}, "No images."));
}

function showSides(app, found) {
  document.getElementById("sides").replaceChildren(...found.sides.map((items, number) => side(app, number, items)));
}

// A query with the agreement of both searches.
export function difference(app, item) {
  const ask = make("button", { type: "button", className: "ask" }, item.text);
  ask.addEventListener("click", () => app.go({ ...app.query, view: "compare", words: item.text, minus: "", like: [], images: [] }));
  const rank = (one) => (one === null ? "over 100" : one);
  const own = item.row === null ? "" : ` · rank of the caption’s image: ${rank(item.ranks[0])} → ${rank(item.ranks[1])}`;
  return make("div", { className: "card query" }, ask, make("div", { className: "text" }, `${item.common} of 10 in common${own}`));
}

function summary(found) {
  const percent = (count) => `${Math.round((100 * count) / found.captions)} %`;
  const ranks = found.captions
    ? ` The first 10 results contain the image of the caption for ${percent(found.among_ten[0])} of the captions in the first index, and for ${percent(found.among_ten[1])} in the second index.` : "";
  return `${found.total.toLocaleString("en")} queries. The queries whose first 10 results differ most come first. The mean rank-biased overlap is ${found.overlap.toFixed(2)}.${ranks}`;
}

// body: the query as the server takes it.
export async function showComparison(app, grid, body, isShown) {
  const searching = body.words.length || body.like.length || body.images.length;
  document.getElementById("sides").replaceChildren();
  const tell = (text) => { document.getElementById("about").textContent = text; };
  tell("");
  try {
    if (searching) {
      say("Searching in both indexes; the first search loads the models…");
      const found = await (await ask("/api/compare", { query: body })).json();
      if (!isShown()) return;
      showSides(app, found);
      say(`${found.common} of the first ${found.depth} in common; the rank-biased overlap is ${found.overlap.toFixed(2)}. Images with a blue edge are not among the first 100 of the other list.`);
    } else say("Enter words, drop an image here, or choose one of the queries below.");
    const fetched = async (start, count) => (await ask("/api/differences", { start, count })).json();
    const found = await finished(() => fetched(0, 60), isShown, (one) => `Comparing queries: ${Math.round(100 * one.working)} %`, tell);
    if (!found) return;
    tell(summary(found));
    grid.reset(found.total, 0, fetched, found.items);
  } catch (error) {
    if (isShown()) say(error.message, true);
  }
}

// Moves the focus between cards of the sides; returns whether the key was used.
export function moveInSides(element, key) {
  const entry = element?.closest("#sides li");
  if (!entry) return false;
  const lists = [...document.querySelectorAll("#sides ol")], entries = [...entry.parentElement.children];
  const wide = entries.filter((one) => one.offsetTop === entries[0].offsetTop).length, position = entries.indexOf(entry);
  const step = { ArrowDown: wide, ArrowUp: -wide, ArrowRight: 1, ArrowLeft: -1 }[key];
  if (!step) return false;
  const side = lists.indexOf(entry.parentElement), column = position % wide;
  const crossed = (key === "ArrowRight" && column === wide - 1 && side === 0) || (key === "ArrowLeft" && column === 0 && side === 1);
  const wanted = crossed
    ? lists[1 - side]?.children[key === "ArrowRight" ? position - column : position + wide - 1] : entries[position + step];
  wanted?.querySelector("button").focus();
  return true;
}
