// What pages can do beyond being documents: stay up to date, show and take times in the viewer's
// zone, and listen to keys. Every page reads and every form works without this file.
"use strict";

// --- times ------------------------------------------------------------------------------------

const local = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function showTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]:not([title])")) {
    time.title = time.textContent;
    time.textContent = local.format(new Date(time.dateTime));
  }
}

// A time that is typed is of the viewer's zone, and is sent as UTC. One that the user has not changed is
// sent as it came: it may have parts of a second, or be in the hour that clocks go through twice.
function asField(moment) {
  const shifted = new Date(moment.getTime() - moment.getTimezoneOffset() * 60_000);
  return shifted.toISOString().slice(0, 19);
}

function takeLocalTimes(root) {
  for (const field of root.querySelectorAll("input[data-utc]")) {
    if (field.dataset.utc) field.value = asField(new Date(field.dataset.utc));
    field.dataset.shown = field.value;
    const zone = field.closest("label").querySelector("[data-zone]");
    zone.textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
  }
  root.addEventListener("formdata", ({ target, formData }) => {
    for (const field of target.querySelectorAll("input[data-utc]")) {
      const { utc, shown } = field.dataset;
      const moment = field.value && field.value !== shown ? new Date(field.value) : null;
      formData.set(field.name, moment ? moment.toISOString().replace(".000Z", "Z") : field.value && utc);
    }
  });
}

// --- up to date -------------------------------------------------------------------------------

// Of the page as it is now, what is marked `data-fresh` is put in the place of what is shown. What
// the user is typing into, or has opened, stays.
async function refresh() {
  const answer = await fetch(location.href, { headers: { "X-Live": "1" } });
  if (!answer.ok) throw new Error(`${answer.status}`);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const shown of document.querySelectorAll("[data-fresh]")) {
    const fresh = page.getElementById(shown.id);
    if (!fresh) continue;
    showTimes(fresh);
    if (fresh.innerHTML === shown.innerHTML) continue;
    const busy = document.activeElement;
    if (shown.contains(busy) && busy.matches("input, textarea, select, summary")) continue;
    const followed = shown.contains(busy) && busy.href;
    const place = [...shown.querySelectorAll("a")].indexOf(busy); // Where its address changes.
    for (const open of shown.querySelectorAll("details[id][open]")) {
      fresh.querySelector(`#${CSS.escape(open.id)}`)?.setAttribute("open", "");
    }
    shown.replaceChildren(...fresh.childNodes);
    if (followed) {
      const links = [...shown.querySelectorAll("a")];
      (links.find((link) => link.href === followed) ?? links[place])?.focus();
    }
  }
}

// A page listens while it is seen: browsers allow few connections to one host (six, over HTTP/1.1),
// and hidden pages would hold them all.
function keepFresh() {
  const state = document.getElementById("live");
  if (!document.querySelector("main [data-fresh]") || document.body.dataset.still) return;
  let ticks = null;
  let looking = false;
  let before = "";

  async function look() {
    if (looking) return;
    looking = true;
    try {
      await refresh();
      state.textContent = "live ·";
      delete state.dataset.lost;
    } catch (error) {
      state.textContent = error.message === "401" ? "logged out ·" : "not up to date ·";
    } finally {
      looking = false;
    }
  }

  function listen() {
    before = "";
    ticks = new EventSource(document.body.dataset.live);
    ticks.addEventListener("tick", (event) => {
      if (looking || event.data === before) return;
      const first = before === "";
      before = event.data;
      if (first && !state.dataset.lost) state.textContent = "live ·"; // The page has just come.
      else look();
    });
    ticks.addEventListener("error", () => {
      state.textContent = "waiting for the console ·";
      state.dataset.lost = "yes";
      before = "";
    });
  }

  function attend() {
    if (document.hidden) {
      ticks?.close();
      ticks = null;
    } else if (!ticks) {
      listen();
    }
  }

  document.addEventListener("visibilitychange", () => {
    attend();
    if (!document.hidden) look();
  });
  attend();
}

// --- playing ----------------------------------------------------------------------------------

// The page of the next moment, and of the one after, as long as there is one.
const PLAY_MS = 1000;

function showPlay() {
  const button = document.querySelector("[data-play]");
  if (!button || !document.querySelector("a[rel=next]")) return;
  const label = button.textContent;
  button.hidden = false;
  button.addEventListener("click", async () => {
    button.dataset.playing = button.dataset.playing ? "" : "yes";
    while (button.dataset.playing) {
      button.textContent = "Stop";
      const next = document.querySelector("a[rel=next]");
      if (!next) break;
      history.replaceState(null, "", next.href);
      await refresh().catch(() => { button.dataset.playing = ""; });
      await new Promise((resolve) => setTimeout(resolve, PLAY_MS));
    }
    button.dataset.playing = "";
    button.textContent = label;
  });
}

// --- keys -------------------------------------------------------------------------------------

let leading = false;

function follow(key) {
  const link = [...document.querySelectorAll("[data-key]")].find((l) => l.dataset.key === key);
  if (link) location.href = link.href;
}

function move(step) {
  const rows = [...document.querySelectorAll("a.row")];
  if (!rows.length) return;
  const at = rows.indexOf(document.activeElement);
  const next = at < 0 ? (step > 0 ? 0 : rows.length - 1) : at + step;
  rows[Math.max(0, Math.min(rows.length - 1, next))].focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, textarea, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (leading) {
    leading = false;
    follow(event.key);
    return;
  }
  switch (event.key) {
    case "g": leading = true; break;
    case "?": follow("?"); break;
    case "j": move(1); break;
    case "k": move(-1); break;
    case "n": document.querySelector("main a[rel=next]")?.click(); break;
    case "p": document.querySelector("main a[rel=prev]")?.click(); break;
    case "/": {
      const field = document.querySelector("main input:not([type=hidden]), main select");
      if (field) {
        event.preventDefault();
        field.focus();
      }
      break;
    }
  }
});

// --- forms ------------------------------------------------------------------------------------

// A slider is a form of its own: letting go of it is sending it.
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-send]")) event.target.form.requestSubmit();
});

showTimes(document);
takeLocalTimes(document);
keepFresh();
showPlay();
