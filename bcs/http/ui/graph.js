// Draws the phases of a pipeline from left to right; an arrow leads from a phase to one that requires it.

import { h, svg } from "./dom.js";

const CHARACTER = 7.9;
const LINE = 18;
const PADDING = 10;
const BETWEEN = { columns: 60, rows: 18 };
const MARGIN = 8;
let graphs = 0;

// How far a phase is for a batch, by the decision about it: the same words as the service's own pictures have.
export function standing(decision, total) {
  let kind = "open";
  if (!decision.runs) kind = decision.reason === "settled" ? "settled" : "complete";
  else if (["definition_changed", "dependency_runs_again", "downstream_of_forced"].includes(decision.reason)) kind = "again";
  else if (decision.failed) kind = "failed";
  else if (decision.completed) kind = "partly";
  const name = { again: "runs again" }[kind] ?? kind;
  const failed = decision.failed ? `, ${decision.failed} failed` : "";
  return { kind, text: `${name}: ${decision.completed} of ${total}${failed}` };
}

function place(phases, ofBatch) {
  const rank = new Map();
  const known = new Set(phases.map((phase) => phase.name));
  const rankOf = (phase) => {
    if (!rank.has(phase.name)) {
      const before = phases.filter((other) => phase.requires.includes(other.name) && known.has(other.name));
      rank.set(phase.name, before.length ? 1 + Math.max(...before.map(rankOf)) : 0);
    }
    return rank.get(phase.name);
  };
  phases.forEach(rankOf);
  const boxes = new Map();
  let left = MARGIN;
  for (let column = 0; phases.some((phase) => rank.get(phase.name) === column); column += 1) {
    const members = phases.filter((phase) => rank.get(phase.name) === column).map((phase) => ({
      phase, lines: [phase.name, ...(phase.needs_prompt ? ["needs a prompt"] : []),
        ...(ofBatch.has(phase.name) ? [ofBatch.get(phase.name).text] : [])],
    }));
    const width = Math.max(...members.flatMap((each) => each.lines.map((text) => text.length))) * CHARACTER + 2 * PADDING;
    const wish = (each) => {
      const before = each.phase.requires.map((name) => boxes.get(name)).filter(Boolean);
      return before.length ? before.reduce((sum, box) => sum + box.middle, 0) / before.length : 0;
    };
    let top = MARGIN;
    for (const each of members.sort((one, other) => wish(one) - wish(other))) {
      const height = each.lines.length * LINE + 2 * PADDING;
      boxes.set(each.phase.name, { ...each, left, top, width, height, middle: top + height / 2 });
      top += height + BETWEEN.rows;
    }
    left += width + BETWEEN.columns;
  }
  return boxes;
}

export function graph(title, phases, ofBatch = new Map()) {
  const arrow = `arrow-${(graphs += 1)}`;
  const boxes = place(phases, ofBatch);
  const width = Math.max(...[...boxes.values()].map((box) => box.left + box.width)) + MARGIN;
  const height = Math.max(...[...boxes.values()].map((box) => box.top + box.height)) + MARGIN;
  const said = phases.map((phase) => [phase.name, phase.requires.length ? ` after ${phase.requires.join(" and ")}` : "",
    ofBatch.has(phase.name) ? ` (${ofBatch.get(phase.name).text})` : ""].join("")).join("; ");
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${said}` },
    svg("defs", {}, svg("marker", { id: arrow, viewBox: "0 0 8 8", refX: 8, refY: 4, markerWidth: 8, markerHeight: 8, orient: "auto" },
      svg("path", { d: "M0 0L8 4L0 8z" }))));
  for (const box of boxes.values()) {
    for (const start of box.phase.requires.map((name) => boxes.get(name)).filter(Boolean)) {
      const from = start.left + start.width;
      const bend = (from + box.left) / 2;
      picture.append(svg("path", { d: `M${from} ${start.middle}C${bend} ${start.middle} ${bend} ${box.middle} ${box.left} ${box.middle}`,
        class: box.phase.rerun_with_dependencies ? "again" : "", "marker-end": `url(#${arrow})` }));
    }
  }
  for (const [name, box] of boxes) {
    const kind = ofBatch.get(name)?.kind ?? "open";
    const texts = box.lines.map((text, index) => {
      const element = svg("text", { x: box.left + PADDING, y: box.top + PADDING + LINE * (index + 0.75), class: index ? "" : "name" });
      element.textContent = text;
      return element;
    });
    picture.append(svg("g", { class: `phase-${kind}` },
      svg("rect", { x: box.left, y: box.top, width: box.width, height: box.height, rx: 5 }), ...texts));
  }
  return h("div", { class: "graph card", tabindex: "0", role: "region", "aria-label": `Graph of ${title}` }, picture);
}
