// The map: images as points; a lasso or a rectangle selects some of them.

import { ask, finished, say } from "/ask.js";
import { make, thumbnail } from "/cards.js";

const COLORS = ["#2f7fd0", "#e08a00", "#009e73", "#cc5fa0", "#d5480a", "#8f56d8", "#9a8f00", "#17a2b8", "#a0623a"];
const OTHER = "#8a93a1", EDGE = 10, NEAR = 14;

export class ImageMap {
  // select(rows): is called with the rows that the user has drawn around.
  constructor(app, element, select) {
    Object.assign(this, { app, element, select, points: null, path: [], cross: [0.5, 0.5], corner: null });
    this.canvas = element.querySelector("canvas");
    this.preview = element.querySelector("#preview");
    this.whole();
    this.canvas.addEventListener("pointerdown", (event) => this.down(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    this.canvas.addEventListener("pointerup", (event) => this.up(event));
    this.canvas.addEventListener("pointercancel", () => { this.path = []; this.draw(); });
    this.canvas.addEventListener("pointerleave", () => this.preview.replaceChildren());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("focus", () => this.draw());
    this.canvas.addEventListener("blur", () => { this.corner = null; this.draw(); });
    element.querySelector("#zoom").addEventListener("click", () => this.zoom());
    new ResizeObserver(() => this.draw()).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  // Shows the images that the query's filter keeps; returns whether some are selected.
  async load(query, isShown) {
    const key = JSON.stringify([query.where, query.color]);
    try {
      if (key !== this.loaded) {
        say("…");
        const question = async () => (await ask("/api/map", { where: query.where, color: query.color })).json();
        const points = await finished(question, isShown, (one) => `Computing the map of ${one.images.toLocaleString("en")} images. The map is computed once, and takes a few minutes for 20,000 images…`);
        if (!points) return false;
        [this.points, this.loaded] = [points, key];
      }
      const { rows, total } = this.points, sample = total > rows.length ? ` (a sample of all ${total.toLocaleString("en")} images)` : "";
      say(`${rows.length.toLocaleString("en")} images on the map${sample}. Draw around images to list them.`);
      return this.show(this.points, query.rows);
    } catch (error) {
      if (isShown()) say(error.message, true);
      return false;
    }
  }

  show(points, selected) {
    this.points = points;
    this.selected = new Set(selected);
    const others = points.names && points.colors.includes(points.names.length);
    const legend = [...(points.names || []), ...(others ? ["other or no label"] : [])];
    this.element.querySelector("#legend").replaceChildren(...legend.map((name, number) => {
      const color = make("span", {}, "●");
      color.style.color = this.color(number);
      return make("li", {}, color, ` ${name}`);
    }));
    this.draw();
    return this.selected.size > 0;
  }

  color(number) { return number < this.points.names.length ? COLORS[number] : OTHER; }

  whole() { this.view = { x: 0, y: 0, size: 1 }; }

  // Shows the part of the map around the selection, or the whole map again.
  zoom() {
    const { x, y, rows } = this.points, chosen = rows.flatMap((row, n) => (this.selected.has(row) ? [n] : []));
    if (this.view.size < 1 || !chosen.length) this.whole();
    else {
      const range = (values) => chosen.reduce(([low, high], n) => [Math.min(low, values[n]), Math.max(high, values[n])], [1, 0]);
      const [left, right] = range(x), [top, bottom] = range(y), size = Math.max(right - left, bottom - top, 0.01) * 1.1;
      this.view = { x: (left + right - size) / 2, y: (top + bottom - size) / 2, size };
    }
    this.element.querySelector("#zoom").textContent = this.view.size < 1 ? "Whole map" : "Zoom to selection";
    this.draw();
  }

  at(x, y) {
    const { width, height } = this, { view } = this;
    return [EDGE + (x - view.x) / view.size * (width - 2 * EDGE), EDGE + (y - view.y) / view.size * (height - 2 * EDGE)];
  }

  draw() {
    const { canvas, points } = this;
    if (!points || this.element.hidden) return;
    this.width = this.element.clientWidth;
    this.height = Math.round(Math.max(240, Math.min(this.width, innerHeight * 0.62)));
    const scale = devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
    canvas.width = this.width * scale;
    canvas.height = this.height * scale;
    canvas.style.height = `${this.height}px`;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    const radius = points.rows.length > 5000 ? 1.8 : 3;
    const dot = (n, size) => {
      const [x, y] = this.at(points.x[n], points.y[n]);
      context.beginPath();
      context.arc(x, y, size, 0, 7);
      context.fill();
    };
    for (const kept of [0, 1]) { // images that the filter leaves out are below the others
      context.globalAlpha = kept ? 0.8 : 0.12;
      points.rows.forEach((row, n) => {
        if (points.kept[n] !== kept) return;
        context.fillStyle = points.colors ? this.color(points.colors[n]) : COLORS[0];
        dot(n, radius);
      });
    }
    context.globalAlpha = 1;
    context.fillStyle = context.strokeStyle = style.getPropertyValue("--ink");
    points.rows.forEach((row, n) => { if (this.selected.has(row) && points.kept[n]) dot(n, radius + 0.7); });
    context.lineWidth = 1.5;
    if (this.path.length > 1) {
      context.beginPath();
      this.shape().forEach(([x, y]) => context.lineTo(x, y));
      context.closePath();
      context.stroke();
    }
    if (document.activeElement === canvas && canvas.matches(":focus-visible")) this.drawCross(context);
  }

  drawCross(context) {
    const [x, y] = [this.cross[0] * this.width, this.cross[1] * this.height];
    context.beginPath();
    for (const [dx, dy] of [[9, 0], [0, 9]]) { context.moveTo(x - dx, y - dy); context.lineTo(x + dx, y + dy); }
    if (this.corner) context.rect(this.corner[0], this.corner[1], x - this.corner[0], y - this.corner[1]);
    context.stroke();
  }

  // The drawn outline; for a rectangle, its corners.
  shape() {
    if (!this.element.querySelector("#rectangle").checked) return this.path;
    const [[left, top]] = this.path, [right, bottom] = this.path.at(-1);
    return [[left, top], [right, top], [right, bottom], [left, bottom]];
  }

  down(event) {
    if (event.button !== 0 || !this.points) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.preview.replaceChildren();
    this.path = [[event.offsetX, event.offsetY]];
  }

  move(event) {
    const place = [event.offsetX, event.offsetY];
    if (this.path.length) { this.path.push(place); this.draw(); } else if (event.pointerType === "mouse") this.hover(place);
  }

  up(event) {
    const { path } = this, far = path.some(([x, y]) => Math.hypot(x - path[0][0], y - path[0][1]) > 5);
    const shape = far ? this.shape() : null;
    this.path = [];
    if (shape) this.choose(shape);
    else {
      const near = this.nearest([event.offsetX, event.offsetY]);
      this.draw();
      if (near !== null) this.app.openRow(this.points.rows[near]);
    }
  }

  choose(shape) {
    const { points } = this;
    this.select(points.rows.filter((row, n) => points.kept[n] && inside(shape, ...this.at(points.x[n], points.y[n]))));
  }

  nearest([x, y]) {
    let best = null, least = NEAR;
    this.points?.rows.forEach((row, n) => {
      const [px, py] = this.at(this.points.x[n], this.points.y[n]), distance = Math.hypot(px - x, py - y);
      if (this.points.kept[n] && distance < least) [best, least] = [n, distance];
    });
    return best;
  }

  hover(place) {
    const near = this.nearest(place), row = near === null ? null : this.points.rows[near];
    this.canvas.style.cursor = near === null ? "crosshair" : "pointer";
    if (row === this.hovered && this.preview.childElementCount) return;
    this.hovered = row;
    this.preview.replaceChildren(...(row === null ? [] : [thumbnail(this.app, { row, image: "", captions: [] }, false)]));
    this.preview.style.left = `${Math.max(0, Math.min(place[0] + 14, this.width - 150))}px`;
    this.preview.style.top = `${place[1] > this.height / 2 ? place[1] - 154 : place[1] + 14}px`;
  }

  // Arrows move a cross; Enter sets two corners of a rectangle.
  key(event) {
    const step = event.shiftKey ? 0.1 : 0.02;
    const [dx, dy] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] || [];
    const [x, y] = [this.cross[0] * this.width, this.cross[1] * this.height];
    if (dx !== undefined) {
      this.cross = [Math.min(1, Math.max(0, this.cross[0] + dx)), Math.min(1, Math.max(0, this.cross[1] + dy))];
    } else if (event.key === "Escape") this.corner = null;
    else if (event.key === "Enter" || event.key === " ") {
      if (this.corner) {
        const [left, top] = this.corner;
        this.corner = null;
        this.choose([[left, top], [x, top], [x, y], [left, y]]);
      } else {
        this.corner = [x, y];
        say("First corner set: move with the arrows, press Enter for the opposite corner, Esc to cancel.");
      }
    } else return;
    event.preventDefault();
    event.stopPropagation();
    this.draw();
  }
}

// Whether a point is inside a polygon: a ray from it crosses the outline an odd number of times.
export function inside(shape, x, y) {
  let odd = false;
  for (let n = 0, last = shape.length - 1; n < shape.length; last = n++) {
    const [x0, y0] = shape[n], [x1, y1] = shape[last];
    if (y0 > y !== y1 > y && x < (x1 - x0) * (y - y0) / (y1 - y0) + x0) odd = !odd;
  }
  return odd;
}
