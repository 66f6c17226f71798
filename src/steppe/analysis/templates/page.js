"use strict";
(() => {
  const data = JSON.parse(document.getElementById("steppe-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const TALLEST = 720, CONFIG = { displayModeBar: false, responsive: false };
  let printing = false;

  // The figures are in the colours of light ground. The page's own are its variables; the others have a partner on dark.
  function colours() {
    const found = dark.matches && !printing ? { ...data.dark } : {};
    for (const [light, variable] of Object.entries(data.variables)) { found[light] = style(variable); }
    return found;
  }

  function recoloured(value, found) {
    if (typeof value === "string") { return found[value] ?? value; }
    if (Array.isArray(value)) { return value.map((each) => recoloured(each, found)); }
    if (value === null || typeof value !== "object") { return value; }
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, recoloured(each, found)]));
  }

  // Names along an axis stand clear of each other: every k-th is shown. A letter is so wide; 0 where they are stacked.
  function thinned(axis, letter, room) {
    const longest = Math.max(...axis.ticktext.map((each) => each.length));
    const every = Math.ceil(axis.ticktext.length * (letter ? 4 + letter * longest : 12) / room);
    const kept = (_, place) => place % every === 0;
    return { ...axis, tickvals: axis.tickvals.filter(kept), ticktext: axis.ticktext.filter(kept) };
  }

  // How wide a picture is inside its axes is known once the labels have their room; its height follows from that.
  function inProportion(element, layout, ratio) {
    const inside = element._fullLayout._size, tall = Math.min(inside.w * ratio, TALLEST), wide = tall / ratio;
    const { width, height } = element._fullLayout;
    const fitted = { ...layout, width: width - inside.w + wide, height: height - inside.h + tall };
    if (layout.xaxis.ticktext) {
      fitted.xaxis = thinned(layout.xaxis, layout.xaxis.tickangle ? 0 : 7, wide);
      fitted.yaxis = thinned(layout.yaxis, 0, tall);
    }
    return fitted;
  }

  function hasProportion(element, ratio) {
    const inside = element._fullLayout._size;
    return Math.abs(inside.h - inside.w * ratio) <= 1 && inside.h <= TALLEST + 1;
  }

  async function draw() {
    const found = colours();
    await Promise.all([...document.querySelectorAll("[data-figure]")].map(async (element) => {
      const figure = recoloured(data.figures[Number(element.dataset.figure)], found);
      element.style.width = printing ? "17cm" : ""; // on paper, an upright page's, whatever the window's
      const font = { ...figure.layout.font, family: style("--sans") };
      const layout = { ...figure.layout, font, width: element.clientWidth };
      const ratio = figure.layout.meta?.ratio, plot = (how) => Plotly.newPlot(element, figure.data, structuredClone(how), CONFIG);
      if (ratio) { delete layout.yaxis.scaleanchor; } // for where the page does not see to it
      await plot(layout);
      // Other labels, other margins: what is inside comes near its proportion, and nearer the next time.
      for (let times = 0; ratio && times < 3 && !hasProportion(element, ratio); times++) {
        await plot(inProportion(element, layout, ratio));
      }
    }));
  }

  // One after the other: plotly goes on drawing when a call has returned.
  let width = document.body.clientWidth, drawn = draw();
  const redraw = () => { drawn = drawn.then(draw); };
  addEventListener("resize", () => { if (document.body.clientWidth !== width) { width = document.body.clientWidth; redraw(); } });
  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => { printing = true; redraw(); });
  addEventListener("afterprint", () => { printing = false; redraw(); });
  drawn.then(() => { document.documentElement.dataset.ready = "yes"; });
})();
