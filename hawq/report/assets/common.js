// What both pages share: data, formats, charts that follow the width of the window, copying.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "style") made.style.cssText = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function bytes(value) {
  return value < 2 ** 20 ? `${(value / 2 ** 10).toFixed(1)} KiB` : `${(value / 2 ** 20).toFixed(2)} MiB`;
}

function sig(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e7)) return value.toExponential(1).replace("-", "−");
  return Number(value.toPrecision(3)).toLocaleString("en");
}

function say(text) {
  const toast = byId("toast");
  toast.textContent = text;
  toast.classList.add("on");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => toast.classList.remove("on"), 1800);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page from disk may not be allowed to
    const area = element("textarea", { style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  document.body.dataset.copied = text;
  say("Command copied");
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button.dataset.copy);
});

// Charts are drawn at the width they have, and again when it changes.
const CHARTS = [];
function chart(place, draw, label) {
  if (!place) return () => {};
  const redraw = () => {
    const width = Math.floor(place.clientWidth);
    if (!width) return;
    const plot = draw(width);
    for (const own of plot.querySelectorAll("g[aria-label]")) own.removeAttribute("aria-label"); // a group has no role
    for (const svg of plot.matches?.("svg") ? [plot] : plot.querySelectorAll("svg")) {
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", typeof label === "function" ? label() : label);
    }
    place.replaceChildren(plot);
    place.dataset.drawn = width;
  };
  CHARTS.push({ place, redraw });
  redraw();
  return redraw;
}

new ResizeObserver(() => {
  for (const { place, redraw } of CHARTS) if (Math.abs(place.clientWidth - place.dataset.drawn) > 1) redraw();
}).observe(document.body);

const DARK = matchMedia("(prefers-color-scheme: dark)");
DARK.addEventListener("change", () => CHARTS.forEach(({ redraw }) => redraw()));

const PLOT = { style: { fontSize: "13px", fontFamily: "inherit", background: "none" } };
const COLORS = ["var(--accent)", "var(--warm)", "var(--good)", "var(--soft)"];
const TIP = { fill: "var(--card)", stroke: "var(--line)" };

// The axes of a logarithmic scale with a label at each of these ticks: by itself Plot leaves out those that d3 finds too dense.
const across = (ticks, text) => Plot.axisX(ticks, { text, labelAnchor: "center", labelArrow: "none" });
const upward = (ticks, text) => Plot.axisY(ticks, { text, labelArrow: "none" });

// Round values on a logarithmic axis: powers of ten, with 2 and 5 between where these are few.
function decades(values, most) {
  const [low, high] = d3.extent(values);
  const round = (parts) => d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1)
    .flatMap((power) => parts.map((part) => part * 10 ** power)).filter((value) => value >= low && value <= high);
  const found = [[1, 2, 5], [1, 3], [1]].map(round).find((all) => all.length <= most) ?? round([1]);
  return found.filter((_, place) => place % Math.ceil(found.length / most) === 0);
}

// A few round sizes within what is shown.
function ticks(values, most) {
  const [low, high] = d3.extent(values);
  const powers = d3.range(10, 45).map((power) => 2 ** power);
  const round = [powers, powers.flatMap((power) => [power, 1.5 * power])].map((all) => all.filter((value) => value >= low && value <= high));
  const found = round.find((all) => all.length >= 3) ?? round[1];
  const every = Math.ceil(found.length / most);
  return found.length < 2 ? [low, high] : found.filter((_, place) => place % every === 0);
}

// A size on an axis: no decimals that say nothing.
const sizeText = (value) => bytes(value).replace(/\.?0+ /, " ");
