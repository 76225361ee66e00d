// Makes elements. Text of the service only ever becomes a text node or an attribute that is no script, style or link:
// ids of batches and texts of errors come from outside.

const SVG = "http://www.w3.org/2000/svg";
const PLAIN = new Set(["id", "class", "for", "type", "name", "value", "min", "max", "maxlength", "placeholder",
  "autocomplete", "spellcheck", "tabindex", "scope", "colspan", "role", "title", "hidden", "disabled", "checked",
  "multiple", "open", "href", "list", "datetime", "required"]);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "href" && !String(value).startsWith("#")) throw new Error("links lead to parts of this page only");
    else if (PLAIN.has(name) || name.startsWith("aria-") || name.startsWith("data-"))
      element.setAttribute(name, value === true ? "" : String(value));
    else throw new Error(`no such attribute: ${name}`);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children);
  return element;
}

// A changed text alone is written, so that the page does not work, and readers are not told, where nothing is new.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function announce(text) {
  setText(document.getElementById("announcer"), text);
}

export function table(caption, columns, rows) {
  const head = columns.map((column) => {
    const [text, kind] = Array.isArray(column) ? column : [column, ""];
    return h("th", { scope: "col", class: kind }, text);
  });
  return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", {}, caption), h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows)));
}

export const facts = (pairs) => h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined)
  .map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));

export const state = (kind, text) => h("span", { class: "state", "data-state": kind }, text);

export const problemBox = (error) => h("p", { class: "notice bad", role: "alert" }, error.message);

let dialogs = 0;

// A question with a form. `confirm` gets the form when the person agrees; what it throws is shown, and the dialog stays.
export function ask({ title, body, agree, danger = false, confirm, validate = () => true }) {
  const id = `dialog-${(dialogs += 1)}`;
  const problem = h("p", { class: "notice bad", role: "alert", hidden: true });
  const yes = h("button", { type: "submit", class: danger ? "danger" : "main" }, agree);
  const no = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const form = h("form", { onsubmit: submit }, h("h2", { id }, title), body, problem, h("div", { class: "actions" }, no, yes));
  const dialog = h("dialog", { "aria-labelledby": id, onclose: () => dialog.remove() }, form);
  async function submit(event) {
    event.preventDefault();
    if (!validate(form)) return;
    yes.disabled = true;
    problem.hidden = true;
    try {
      if ((await confirm(form)) !== false) dialog.close();
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    } finally {
      yes.disabled = false;
    }
  }
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${number(value * 1000)} ms`;
  if (value < 120) return `${number(value, value < 10 ? 1 : 0)} s`;
  if (value < 7200) return `${number(value / 60)} min`;
  if (value < 172800) return `${number(value / 3600)} h`;
  return `${number(value / 86400)} days`;
}

export function time(text) {
  if (!text) return "–";
  const at = new Date(text);
  const local = Number.isNaN(at.getTime()) ? text : at.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
  return h("time", { datetime: text, title: text }, local);
}

export const words = (name) => String(name).replaceAll("_", " ");
