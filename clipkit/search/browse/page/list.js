// The list of images and captions to drop, kept in the browser until it is emptied.

const keyOf = (item) => (item.fit !== undefined || item.caption !== undefined ? `${item.row}:${item.caption}` : `${item.row}`);

const REASONS = {
  duplicates: (item) => `looks like ${item.other.image} (similarity ${item.score.toFixed(3)})`,
  outliers: (item) => `resembles no other image (similarity ${item.score.toFixed(2)})`,
  labels: (item) => `labeled ${item.label}, but similar images are labeled ${item.suggested}`,
  map: () => "selected on the map",
  captions: (item) => `does not fit the image (similarity ${item.score.toFixed(2)})`,
};

function reasonOf(item, view, query) {
  const usual = () => (query ? `selected in a search for ${query}` : "selected");
  return (item.reason || (REASONS[view] || usual)(item)).slice(0, 200);
}

// The entry of a list for `clipkit data check --fix --drop`.
export function entryOf(item, view, query) {
  return { row: item.row, caption: item.caption ?? null, reason: reasonOf(item, view, query) };
}

export class DropList {
  constructor(about) {
    this.place = `clipkit ${about.name} ${about.version}`;
    let stored = [];
    try { stored = JSON.parse(localStorage.getItem(this.place) || "[]"); } catch { /* damaged: start anew */ }
    this.entries = new Map(stored.map((item) => [keyOf(item), item]));
  }

  has(item) { return this.entries.has(keyOf(item)); }

  set(item, marked, view, query) {
    if (!marked) this.entries.delete(keyOf(item));
    else if (!this.has(item)) {
      const { row, image, captions, columns, caption } = item;
      this.entries.set(keyOf(item), { row, image, captions, columns, caption, reason: reasonOf(item, view, query) });
    }
  }

  // Returns false if the browser could not keep the list.
  save() {
    try { localStorage.setItem(this.place, JSON.stringify(this.items())); return true; } catch { return false; }
  }

  items() { return [...this.entries.values()]; }

  clear() { this.entries.clear(); }

  request(index) {
    return { index, entries: this.items().map((item) => entryOf(item)) };
  }
}
