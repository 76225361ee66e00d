// Small charts of the last two minutes.

import { h, svg, setText } from "./dom.js";

const POINTS = 120;
const WIDTH = 240;
const HEIGHT = 40;

const line = (values, highest, begin) => values
  .map((value, index) => [((begin + index) / (POINTS - 1)) * WIDTH, HEIGHT - 2 - (value / highest) * (HEIGHT - 4)])
  .map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

export class Chart {
  // `figure` says how the values are shown: title, text(value), and the second line's name.
  constructor({ title, unit, text, second = null, note = null }) {
    this.settings = { title, unit, text, second, note };
    this.values = [];
    this.seconds = [];
    this.value = h("span", {}, "–");
    this.noteText = h("p", { class: "quiet" }, "\u00a0");
    this.lines = { area: svg("path", { class: "area" }), first: svg("path"), second: svg("path", { class: "second" }) };
    this.picture = svg("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
      "aria-label": `${title}: no values yet` }, this.lines.area, this.lines.first, this.lines.second);
    this.element = h("li", { class: "figure" }, h("h3", {}, title),
      h("p", { class: "value" }, this.value, " ", h("small", {}, unit)), this.noteText, this.picture);
  }

  add(value, second = null, note = "") {
    const { title, unit, text } = this.settings;
    setText(this.value, value === null ? "–" : text(value));
    setText(this.noteText, note || "\u00a0");
    if (value === null) return;
    this.values = [...this.values, value].slice(-POINTS);
    this.seconds = [...this.seconds, second ?? 0].slice(-POINTS);
    const highest = Math.max(...this.values, ...this.seconds, 1e-9);
    const begin = POINTS - this.values.length;
    const first = line(this.values, highest, begin);
    this.lines.first.setAttribute("d", first);
    this.lines.area.setAttribute("d", `${first}L${WIDTH} ${HEIGHT}L${(begin / (POINTS - 1)) * WIDTH} ${HEIGHT}Z`);
    if (this.settings.second) this.lines.second.setAttribute("d", line(this.seconds, highest, begin));
    this.picture.setAttribute("aria-label",
      `${title}: ${text(value)} ${unit} now, ${text(Math.max(...this.values))} at most in the last ${this.values.length} seconds`);
  }

  clear() {
    this.values = [];
    this.seconds = [];
  }
}
