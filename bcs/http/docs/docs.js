"use strict";

const ask = document.getElementById("ask");
const notice = document.getElementById("notice");

function tell(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

// All addresses are relative, because a proxy may have put a path before them.
async function load(token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch("openapi.json", { headers, cache: "no-cache" });
  } catch {
    tell("The service can't be reached.");
    return;
  }
  if (answer.status === 401) {
    ask.hidden = false;
    tell(token ? "The service does not know this token." : "");
  } else if (!answer.ok) {
    tell(`The service answers with the status ${answer.status}.`);
  } else {
    ask.hidden = true;
    tell("");
    show(await answer.json(), token);
  }
}

function show(description, token) {
  description.servers = [{ url: new URL(".", location.href).pathname }];
  const page = SwaggerUIBundle({
    spec: description,
    dom_id: "#api",
    validatorUrl: null, // it would be another host
    onComplete: () => token && page.preauthorizeApiKey("bearer", token),
  });
}

ask.addEventListener("submit", (event) => {
  event.preventDefault();
  load(document.getElementById("token").value.trim());
});
load("");
