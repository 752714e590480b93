// Virtual scrolling: only the cards in view exist, and only their items are fetched.

const PAGE = 60, KEPT = 60, GAP = 10, TALLEST = 8e6; // browsers draw nothing below some 16 million pixels

export class Grid {
  // thumbnails: number of images on a card, 0 to 2. fetchItems(start, count) -> {total, items}; draw(item, position) -> element of a card.
  constructor(element, draw) {
    this.element = element;
    this.draw = draw;
    this.cards = new Map();
    this.reset(0, 1, null);
    let waiting = false;
    const later = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; this.render(); });
    };
    addEventListener("scroll", later, { passive: true });
    new ResizeObserver(() => this.redraw()).observe(element.parentElement);
  }

  reset(total, thumbnails, fetchItems, first = []) {
    this.total = total;
    this.thumbnails = thumbnails;
    this.fetchItems = fetchItems;
    this.pages = new Map(first.length ? [[0, first]] : []);
    this.redraw();
  }

  redraw() {
    for (const card of this.cards.values()) card.remove();
    this.cards.clear();
    this.render();
  }

  measure() {
    const width = this.element.clientWidth;
    const least = { 0: 260, 1: 158, 2: 290 }[this.thumbnails];
    const columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
    const card = Math.floor((width - GAP * (columns - 1)) / columns);
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const coarse = matchMedia("(pointer: coarse)").matches;
    const text = (coarse ? 7.1 : 6.5) * rem;
    const height = Math.round(this.thumbnails ? card / this.thumbnails + text : 5.7 * rem);
    const rows = Math.ceil(this.total / columns);
    const whole = rows * (height + GAP);
    return { columns, card, height, step: height + GAP, rows, whole, drawn: Math.min(whole, TALLEST) };
  }

  render() {
    const size = this.size = this.measure();
    this.element.style.height = `${size.drawn}px`;
    const seen = innerHeight, scrolled = Math.max(0, -this.element.getBoundingClientRect().top);
    // Where all rows do not fit into the element, a pixel of scrolling stands for several.
    const offset = size.whole > size.drawn
      ? Math.min(scrolled / (size.drawn - seen), 1) * (size.whole - seen) : scrolled;
    const from = Math.max(0, Math.floor(offset / size.step) - 1) * size.columns;
    const to = Math.min(this.total, (Math.ceil((offset + seen) / size.step) + 1) * size.columns);
    for (const [position, card] of this.cards) {
      if (position < from || position >= to) { card.remove(); this.cards.delete(position); }
    }
    for (let position = from; position < to; position++) {
      let card = this.cards.get(position);
      const item = this.item(position);
      if (!card || (item && card.dataset.empty)) {
        const made = item ? this.draw(item, position) : Object.assign(document.createElement("div"), { className: "card" });
        if (!item) made.dataset.empty = "1";
        made.setAttribute("role", "listitem");
        made.dataset.position = position;
        if (card) card.replaceWith(made); else this.element.append(made);
        this.cards.set(position, card = made);
      }
      const row = Math.floor(position / size.columns);
      card.style.width = `${size.card}px`;
      card.style.height = `${size.height}px`;
      card.style.left = `${(position % size.columns) * (size.card + GAP)}px`;
      card.style.top = `${row * size.step - offset + scrolled}px`;
    }
  }

  // Returns an item, or undefined while its page is fetched.
  item(position) {
    const number = Math.floor(position / PAGE), page = this.pages.get(number);
    if (Array.isArray(page)) {
      this.pages.delete(number); // the page used last is the last to be forgotten
      this.pages.set(number, page);
      return page[position % PAGE];
    }
    if (!page && this.fetchItems) {
      const pages = this.pages;
      pages.set(number, "fetching");
      this.fetchItems(number * PAGE, PAGE).then(({ items }) => {
        pages.set(number, items);
        for (const old of [...pages.keys()].slice(0, Math.max(0, pages.size - KEPT))) pages.delete(old);
        if (pages === this.pages) this.render();
      }, () => setTimeout(() => pages.delete(number), 2000));
    }
    return undefined;
  }

  // Scrolls to a card and focuses its image.
  focus(position) {
    if (position < 0 || position >= this.total) return;
    const { size } = this, row = Math.floor(position / size.columns);
    const header = document.querySelector("header").offsetHeight;
    const top = this.element.getBoundingClientRect().top + scrollY;
    const wanted = Math.max(0, row * size.step - header - GAP); // the offset at which the card is below the header
    const place = size.whole > size.drawn
      ? wanted / (size.whole - innerHeight) * (size.drawn - innerHeight) : wanted;
    if (!this.cards.get(position) || !inView(this.cards.get(position), header)) scrollTo(0, top + place);
    this.render();
    this.cards.get(position)?.querySelector("button")?.focus({ preventScroll: true });
  }
}

function inView(card, header) {
  const box = card.getBoundingClientRect();
  return box.top >= header && box.bottom <= innerHeight;
}
