// Cards and the detail of an image. Names and captions are text: nothing is ever parsed as HTML.

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function address(app, kind, item) {
  const index = item.index ?? app.index;
  return `/${index}/${kind}/${item.row}?v=${app.abouts[index].version}`;
}

export function thumbnail(app, item, first) {
  const image = make("img", { src: address(app, "thumbnail", item), alt: item.captions[0] || item.image, loading: "lazy" });
  const button = make("button", { className: `open${first ? " first" : ""}`, type: "button", title: item.image }, image);
  button.setAttribute("aria-label", `Open ${item.captions[0] || item.image}`);
  image.addEventListener("error", () => { button.classList.add("gone"); button.replaceChildren("The image cannot be opened."); });
  button.addEventListener("click", () => app.open(item));
  return button;
}

function lines(item) {
  if (item.fit !== undefined) {
    const better = item.other ? `; with the image on the right: ${item.better.toFixed(2)}` : "";
    return [make("p", {}, make("b", {}, item.captions[0])), make("p", {}, `similarity ${item.score.toFixed(2)}${better}`)];
  }
  if (item.suggested !== undefined) {
    const percent = (share) => `${Math.round(100 * share)} %`;
    return [make("b", {}, `${item.label} → ${item.suggested}?`),
      make("p", {}, `similar images: ${percent(item.suggested_share)} ${item.suggested}, ${percent(item.share)} ${item.label}`)];
  }
  if (item.other) return [make("b", {}, `similarity ${item.score.toFixed(3)}`), make("p", {}, `${item.image} · ${item.other.image}`)];
  const numbers = [];
  if (item.score !== undefined) numbers.push(item.score.toFixed(3));
  if (item.relevance != null) numbers.push(`${Math.round(100 * item.relevance)} % relevant`);
  if (item.reason) numbers.push(item.reason);
  const made = numbers.length ? [make("b", {}, numbers.join(" · "))] : [];
  return [...made, make("p", {}, item.captions[0] || item.image)];
}

export function marker(app, item, label = "drop") {
  const box = make("input", { type: "checkbox", checked: app.list.has(item) });
  box.addEventListener("change", () => app.mark(item, box.checked));
  return make("label", {}, box, item.fit !== undefined ? "drop caption" : item.other ? "drop left" : label);
}

// note: a line above the text of the card.
export function card(app, item, note = "") {
  const thumbnails = make("div", { className: "thumbnails" }, thumbnail(app, item, true));
  if (item.other) thumbnails.append(thumbnail(app, item.other, false));
  const like = make("button", { type: "button" }, "like this");
  like.addEventListener("click", () => app.like(item));
  const made = make("div", { className: "card" }, thumbnails, make("div", { className: "text" }, ...(note ? [make("p", {}, note)] : []), ...lines(item)),
    ...(item.index ? [] : [make("div", { className: "does" }, like, marker(app, item))]));
  made.item = item;
  made.classList.toggle("marked", app.list.has(item));
  return made;
}

export function detail(app, item) {
  const dialog = document.getElementById("detail");
  const image = make("img", { src: address(app, "image", item), alt: item.captions[0] || item.image });
  const columns = make("dl", {}, ...[["image", item.image], ["row", item.row], ...Object.entries(item.columns)].flatMap(
    ([name, value]) => [make("dt", {}, name), make("dd", {}, value === null ? "–" : String(value))]));
  const close = make("button", { type: "button" }, "Close"), like = make("button", { type: "button" }, "Like this");
  close.addEventListener("click", () => dialog.close());
  like.addEventListener("click", () => { dialog.close(); app.like(item); });
  dialog.replaceChildren(image, make("ul", {}, ...item.captions.map((text) => make("li", {}, text))), columns,
    make("div", { className: "does" }, close, ...(item.index ? [] : [like, marker(app, item)])));
  if (!dialog.open) dialog.showModal();
  close.focus();
}
