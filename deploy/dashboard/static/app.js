// Polls the state and fills the page. Text from outside goes in as textContent only; there is no innerHTML.
"use strict";

const PERIOD_MS = 1000, PATIENCE_MS = 4000, SPAN_S = 300, SLOTS = 60;
const $ = (id) => document.getElementById(id);
let token = takeToken();
let last = null, shownFrom = null;

// The token comes after the # of the printed URL, and then stays with this tab.
function takeToken() {
  const given = location.hash.slice(1);
  if (given) {
    sessionStorage.setItem("token", given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token") ?? "";
}

async function ask(path, body, patience = PATIENCE_MS) {
  const options = { headers: { Authorization: `Bearer ${token}` }, signal: AbortSignal.timeout(patience) };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const reply = await fetch(path, options);
  const data = await reply.json();
  if (!reply.ok) throw Object.assign(new Error(data.error ?? reply.statusText), { status: reply.status });
  return data;
}

async function poll() {
  try {
    last = await ask("api/state");
    show(last);
    $("link").textContent = `${last.server ? last.server.endpoint : "server not heard of yet"}, as of ${clock(last.time_s)}`;
    mark(false);
  } catch (error) {
    $("link").textContent = error.status === 401 ? error.message : `NO CONNECTION, these numbers are old: ${error.message}`;
    mark(true);
  }
  setTimeout(poll, PERIOD_MS);
}

function mark(isStale) {
  document.body.classList.toggle("stale", isStale);
  $("link").classList.toggle("bad", isStale);
}

function element(name, text, className) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function row(cells, className) {
  const line = element("tr", undefined, className);
  for (const cell of cells) line.append(element("td", cell));
  return line;
}

const duration = (us) => (us < 1000 ? `${us.toFixed(0)} us` : `${(us / 1000).toFixed(us < 10000 ? 2 : 1)} ms`);
const short = (version) => (version ? version.slice(0, 12) : "-");
const percent = (value) => (value === null || value === undefined ? "-" : `${(100 * value).toFixed(value && value < 0.1 ? 2 : 0)} %`);
const number = (value) => (value === null || value === undefined ? "-" : value.toPrecision(5).replace(/\.?0+$/, ""));
const clock = (seconds) => new Date(1000 * seconds).toLocaleTimeString();
const when = (seconds) => new Date(1000 * seconds).toLocaleString();

function show(state) {
  showRobots(state);
  $("problems").replaceChildren(...state.problems.map((text) => element("li", text)));
  $("problems-section").hidden = !state.problems.length;
  showPlots(state);
  showPolicies(state.policies);
  showClients(state.server);
  const faults = state.faults.map((item) => element("li", `${when(item.t)}: ${item.episode_id}, ${item.reason} after ${item.steps} steps, policy ${short(item.policy_version)}`));
  $("faults").replaceChildren(...(faults.length ? faults : [element("li", "none in the last 60 episodes", "muted")]));
  $("audit").replaceChildren(...state.audit.map((item) => row([when(item.t), item.event, short(item.version), item.by, item.detail])));
}

function showRobots(state) {
  const cards = state.robots.map((robot) => {
    const isOld = robot.age_s === null || robot.age_s > 5;
    const kind = isOld || robot.tripped || robot.state === "FAULT" ? "bad" : robot.state === "FALLBACK" ? "warn" : robot.state === "RUN" ? "good" : "";
    const card = element("div", undefined, `card ${kind}`);
    card.append(element("strong", robot.name), element("span", isOld ? "NO ANSWER" : robot.state || "unknown", "state"));
    if (robot.tripped) card.append(element("div", `e-stop: ${robot.reason}`), element("div", robot.stop));
    if (isOld && robot.age_s !== null) card.append(element("div", `${robot.state || "unknown"} ${robot.age_s.toFixed(0)} s ago`, "muted"));
    card.append(element("div", robot.endpoint, "muted"));
    return card;
  });
  const none = "No robot is named here (dashboard.robots.NAME=its estop.endpoint), so its state is not known and this page cannot stop it. What talks to the server is under Clients.";
  $("robots").replaceChildren(...(cards.length ? cards : [element("p", none, "muted")]));
  $("estop").disabled = !cards.length;
  $("estop-note").textContent = cards.length ? `stops ${state.robots.length === 1 ? state.robots[0].name : `all ${cards.length} robots`} at once` : "no robot to stop";
}

function showPlots(state) {
  plotLatency($("latency"), state.series, SPAN_S);
  plotMisses($("misses"), state.episodes, SLOTS);
  const now = state.series.at(-1);
  const isBusy = now && now[2] !== null;
  $("latency-now").textContent = isBusy ? `${now[1]} actions/s, p50 ${duration(now[2])}, p99 ${duration(now[3])}, largest ${duration(now[4])}` : "no action asked for";
  const steps = state.episodes.reduce((sum, item) => sum + item.steps, 0);
  const misses = state.episodes.reduce((sum, item) => sum + item.misses, 0);
  $("misses-now").textContent = steps ? `${misses} of ${steps} steps in the last ${state.episodes.length} episode(s)` : "no episode has ended yet";
}

function showPolicies(policies) {
  const rows = (policies.versions ?? []).map((item) => {
    const share = item.share ? percent(item.share) : "";
    const line = row([short(item.version), item.role, share, item.episodes, number(item.mean_return), percent(item.fault_rate), percent(item.miss_rate)], item.role === "in force" ? "current" : "");
    line.firstChild.className = "hash";
    line.firstChild.title = item.version;
    return line;
  });
  $("policies").replaceChildren(...rows);
  $("rollback").disabled = !policies.previous;
  $("rollback").textContent = policies.previous ? `Roll back to ${short(policies.previous)} ...` : "Nothing to roll back to";
}

function showClients(server) {
  const sessions = server?.sessions ?? [];
  const rows = sessions.map((item) => row([item.episode_id || `(between episodes) ${short(item.client)}`, item.policy_version ? item.step_index : "-", short(item.policy_version), item.idle_s < 1 ? "now" : `${item.idle_s.toFixed(0)} s ago`], item.episode_id && item.idle_s > 2 ? "silent" : ""));
  $("sessions").replaceChildren(...(rows.length ? rows : [row(["none", "", "", ""])]));
  if (!server) return;
  const names = { actions: "actions", episodes: "episodes", superseded: "superseded", refused: "refused", malformed: "malformed" };
  $("counters").textContent = Object.entries(names).map(([key, name]) => `${name} ${server.counters[key]}`).join(", ") + `, policy swaps ${server.swaps}`;
}

function say(text, isBad) {
  $("message-text").textContent = text;
  $("message").className = isBad ? "bad" : "";
  $("message").hidden = false;
}

$("message-close").addEventListener("click", () => { $("message").hidden = true; });

// No question before an e-stop; it may be pressed again at any time.
$("estop").addEventListener("click", async () => {
  $("confirm").close();
  say("e-stop sent ...", true);
  try {
    const answer = await ask("api/estop", { reason: "button" }, 10000);
    const failed = answer.robots.filter((robot) => robot.confirmation !== "stopped");
    const lines = answer.robots.map((robot) => `${robot.name}: ${robot.confirmation ? robot.stop : `NOT KNOWN TO HAVE STOPPED. ${robot.error}`}`);
    say([...lines, answer.audit_problem].filter(Boolean).join("\n"), failed.length > 0 || answer.audit_problem);
  } catch (error) {
    say(`E-STOP MAY NOT HAVE ARRIVED, use another way now. ${error.message}`, true);
  }
});

$("rollback").addEventListener("click", () => {
  const policies = last.policies;
  shownFrom = policies.current;
  $("confirm-from").textContent = policies.current;
  $("confirm-to").textContent = policies.previous;
  $("confirm-note").textContent = `Episodes that run go on with what they have; the next ones get the other.${policies.trial ? " The trial ends." : ""}`;
  $("confirm-reason").value = "";
  // Not showModal: nothing may ever cover or disable the e-stop.
  $("confirm").show();
});

$("confirm").addEventListener("keydown", (event) => {
  if (event.key === "Escape") $("confirm").close();
});

$("confirm-no").addEventListener("click", () => $("confirm").close());

$("confirm-yes").addEventListener("click", async () => {
  $("confirm").close();
  try {
    // The version that was shown: if another one is in force by now, nothing happens.
    const answer = await ask("api/rollback", { expect: shownFrom, reason: $("confirm-reason").value }, 30000);
    say(`rolled back to ${answer.version}`, false);
  } catch (error) {
    say(error.message, true);
  }
});

poll();
