// Two small plots in SVG. Everything is built by createElementNS: text from outside never becomes markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 52, BOTTOM = 24, TOP = 8, RIGHT = 8;

function draw(parent, name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function frame(svg) {
  const width = svg.clientWidth || 500, height = svg.clientHeight || 190;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return { width, height, right: width - RIGHT, floor: height - BOTTOM };
}

function level(svg, box, y, label) {
  draw(svg, "line", { class: "grid", x1: LEFT, x2: box.right, y1: y, y2: y });
  draw(svg, "text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, label);
}

function microseconds(value) {
  return value >= 1e6 ? `${value / 1e6} s` : value >= 1e3 ? `${value / 1e3} ms` : `${value} us`;
}

// rows: [seconds ago, actions per second, p50, p99, max], times in us; the time axis is the last `span` seconds.
function plotLatency(svg, rows, span) {
  const box = frame(svg);
  const values = rows.flatMap((row) => row.slice(2)).filter((value) => value > 0);
  const low = values.length ? Math.floor(Math.log10(Math.min(...values))) : 1;
  const high = Math.max(low + 1, values.length ? Math.ceil(Math.log10(Math.max(...values))) : 4);
  const y = (value) => box.floor - ((Math.log10(Math.max(value, 10 ** low)) - low) / (high - low)) * (box.floor - TOP);
  const x = (ago) => box.right - (ago / span) * (box.right - LEFT);
  for (let decade = low; decade <= high; decade += 1) level(svg, box, y(10 ** decade), microseconds(10 ** decade));
  for (let ago = 0; ago <= span; ago += 60) {
    draw(svg, "text", { x: x(ago), y: box.height - 5, "text-anchor": ago ? "middle" : "end" }, ago ? `-${ago / 60} min` : "now");
  }
  ["p50", "p99", "max"].forEach((name, column) => {
    let path = "", open = false;
    for (const row of rows) {
      const value = row[2 + column];
      if (row[0] > span || value === null) { open = false; continue; }
      // A point alone is drawn as a short stroke, so that it can be seen.
      path += open ? `L${x(row[0]).toFixed(1)},${y(value).toFixed(1)}` : `M${x(row[0]).toFixed(1)},${y(value).toFixed(1)}h1`;
      open = true;
    }
    draw(svg, "path", { class: name, d: path });
  });
  if (!values.length) draw(svg, "text", { x: (LEFT + box.right) / 2, y: box.height / 2, "text-anchor": "middle" }, "no action asked for");
}

// episodes: oldest first; a bar each, in percent of its steps.
function plotMisses(svg, episodes, slots) {
  const box = frame(svg);
  const share = (episode) => (episode.steps ? (100 * episode.misses) / episode.steps : 0);
  const top = [1, 2, 5, 10, 20, 50, 100].find((value) => value >= Math.max(0, ...episodes.map(share))) ?? 100;
  const y = (value) => box.floor - (value / top) * (box.floor - TOP);
  for (const part of [0, 0.5, 1]) level(svg, box, y(part * top), `${part * top} %`);
  const width = (box.right - LEFT) / slots;
  const first = slots - episodes.length;
  episodes.forEach((episode, index) => {
    const x = LEFT + (first + index) * width;
    const before = episodes[index - 1];
    if (before && before.policy_version !== episode.policy_version) draw(svg, "line", { class: "change", x1: x, x2: x, y1: TOP, y2: box.floor });
    const height = Math.max(box.floor - y(share(episode)), episode.fault ? 4 : 1.5);
    const bar = draw(svg, "rect", { class: episode.fault ? "fault" : "miss", x: x + 1, y: box.floor - height, width: Math.max(width - 2, 1), height });
    draw(bar, "title", {}, `${episode.episode_id}: ${episode.misses} of ${episode.steps} steps, ${episode.reason}`);
  });
  draw(svg, "text", { x: box.right, y: box.height - 5, "text-anchor": "end" }, episodes.length ? "newest episode" : "");
  if (!episodes.length) draw(svg, "text", { x: (LEFT + box.right) / 2, y: box.height / 2, "text-anchor": "middle" }, "no episode has ended yet");
}
