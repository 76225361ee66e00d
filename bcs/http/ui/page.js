// Puts the page together: which view is shown, who the caller is, and how the connection stands.

import { announce, ask, h, setText } from "./dom.js";
import { BatchView } from "./batch.js";
import { BatchesView } from "./batches.js";
import { DeadLettersView } from "./dead_letters.js";
import { LiveView } from "./live.js";
import { PipelinesView } from "./pipelines.js";
import { hasToken, setToken, Stream } from "./service.js";

const byId = (id) => document.getElementById(id);

// Who the caller is, as the service says it. Without tokens everybody may do everything, so a switch keeps changes off
// until a person wants them.
const session = { process: null, scopes: [], archive: null, kills: false, callersKnown: false, switchedOn: false,
  get mayChange() {
    return this.scopes.includes("operate") && (this.callersKnown || this.switchedOn);
  } };

const live = new LiveView(session);
const views = { live, pipelines: new PipelinesView(), batches: new BatchesView(), batch: new BatchView(session),
  "dead-letters": new DeadLettersView(session) };
const names = { "": "live", pipelines: "pipelines", batches: "batches", "dead-letters": "dead-letters" };
let current = null;

function route(moveFocus) {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [first, ...rest] = path.split("/");
  let id = null;
  try {
    id = rest.length ? decodeURIComponent(rest.join("/")) : null;
  } catch {
    id = rest.join("/");
  }
  const name = first === "batches" && id ? "batch" : names[first] ?? "live";
  current = views[name];
  byId("main").replaceChildren(current.show(new URLSearchParams(query), id));
  document.title = `${current.title} – Batch Conductor`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === (name === "batch" ? "batches" : name)) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (moveFocus) document.querySelector("main h1").focus();
}

const CONNECTION = { live: ["good", "live"], paused: ["", "paused while hidden"], lost: ["bad", "connection lost, retrying"],
  refused: ["bad", "not admitted"], connecting: ["warn", "connecting"] };
let status = "connecting";

function showStatus(next, problem = null) {
  const notice = byId("notice");
  if (next !== status || problem) {
    const [kind, text] = CONNECTION[next];
    byId("connection").dataset.state = kind;
    setText(byId("connection"), text);
    document.body.dataset.connection = next;
  }
  if (next === "live" && status !== "live") notice.hidden = true;
  if (problem?.kind || problem?.status) {
    setText(notice, problem.message);
    notice.hidden = false;
  }
  const before = status;
  status = next;
  if (next === "refused" && before !== "refused") askForToken(problem);
}

function showSession() {
  byId("changes").hidden = session.callersKnown || !session.scopes.includes("operate");
  current?.sessionChanged?.();
}

let dialog = null;

function askForToken(problem = null) {
  if (dialog?.open) return;
  const body = [h("p", {}, "A token with the scope ", h("code", {}, "read"), " shows the data, one with ", h("code", {}, "operate"),
    " also allows changes. It stays in the memory of this page, and is gone when the page is closed or loaded again."),
  problem ? h("p", { class: "notice" }, problem.message) : null,
  h("label", {}, "Token", h("input", { type: "password", name: "token", autocomplete: "off", spellcheck: "false" }))];
  dialog = ask({ title: "Token", body, agree: "Use the token", confirm: (form) => {
    setToken(new FormData(form).get("token"));
    status = "connecting";
    stream.restart();
    route(false);
  } });
}

const stream = new Stream({
  hello: (said) => {
    if (session.process && session.process !== said.process) {
      live.forget();
      announce("The service was started again.");
    }
    Object.assign(session, { process: said.process, scopes: said.scopes, archive: said.archive, kills: said.kills, callersKnown: said.callers_known });
    setText(byId("instance"), `${said.version} on ${said.instance} (${said.environment})`);
    setText(byId("caller"), said.caller || (hasToken() ? "" : said.callers_known ? "no token" : ""));
    byId("token-button").hidden = !said.callers_known;
    document.body.dataset.session = said.process;
    showSession();
  },
  snapshot: (document) => live.snapshot(document),
  status: showStatus,
});

byId("token-button").addEventListener("click", () => askForToken());
byId("changes-box").addEventListener("change", (event) => {
  session.switchedOn = event.target.checked;
  showSession();
});
addEventListener("hashchange", () => route(true));
route(false);
stream.restart();
