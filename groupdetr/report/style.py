"""The style sheet of all reports: for wide and narrow screens, light and dark mode, and print."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fdfcfa; --raised: #ffffff; --ink: #1d1f23; --muted: #646a73; --rule: #dfdcd5;
  --grid: #ebe8e2; --tint: #eef4f8; --accent: #00619a;
  --s0: #d55e00; --s1: #0072b2; --s2: #00875f; --s3: #a8518c; --s4: #9a7200; --s5: #4a5bc4;
  --s6: #777777; --s7: #b3304d;
  --serif: Charter, "Bitstream Charter", "Source Serif 4", Georgia, "Times New Roman", serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
}
@media (prefers-color-scheme: dark) { :root {
  --paper: #16181c; --raised: #1d2025; --ink: #e6e4df; --muted: #9ba1aa; --rule: #353941;
  --grid: #282c32; --tint: #1f2b35; --accent: #7cc4f2;
  --s0: #f0955a; --s1: #62b6ea; --s2: #4fc9a0; --s3: #e09ac8; --s4: #dfbd55; --s5: #9aa6f2;
  --s6: #aaaaaa; --s7: #ff8fa6;
} }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 18px/1.6 var(--serif);
  counter-reset: figure table; text-rendering: optimizeLegibility; }
main { max-width: 1080px; margin: 0 auto; padding: 56px 28px 72px; }
header { border-bottom: 1px solid var(--rule); padding-bottom: 26px; }
.kicker { font: 600 13px/1.4 var(--sans); letter-spacing: .09em; text-transform: uppercase;
  color: var(--accent); }
h1 { font-size: clamp(30px, 4.6vw, 46px); line-height: 1.12; letter-spacing: -.012em;
  margin: 10px 0 16px; font-weight: 600; text-wrap: balance; max-width: 22em; }
h2 { font-size: 27px; line-height: 1.25; letter-spacing: -.006em; margin: 0 0 14px;
  font-weight: 600; text-wrap: balance; }
p { margin: 0 0 16px; max-width: 68ch; text-wrap: pretty; hyphens: auto; }
.lead { font-size: 20.5px; line-height: 1.55; margin: 0; }
section { margin-top: 54px; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: 3px; }
code { font: 15px/1.5 var(--mono); overflow-wrap: anywhere; }

.tiles { display: grid; grid-template-columns: repeat(var(--columns, 3), 1fr); gap: 1px;
  background: var(--raised); border: 1px solid var(--rule); border-radius: 10px; overflow: hidden;
  margin: 34px 0 0; font-family: var(--sans); }
.tile { background: var(--raised); padding: 18px 20px 17px; box-shadow: 0 0 0 1px var(--rule); }
.tile.strong { background: var(--tint); }
.tile dt { font-size: 14px; line-height: 1.35; color: var(--muted); }
.tile .value { font-size: 38px; line-height: 1.15; font-weight: 600; letter-spacing: -.02em;
  margin: 5px 0 3px; white-space: nowrap; }
.tile.strong .value { color: var(--accent); }
.tile .unit { font-size: 17px; font-weight: 500; letter-spacing: 0; color: var(--muted);
  margin-left: 5px; }
.tile dd { margin: 0; }
.tile .note { font-size: 13.5px; line-height: 1.4; color: var(--muted); }

.scroll { overflow: auto; max-height: 80vh; margin: 22px 0 26px; }
.scroll thead th { position: sticky; top: 0; background: var(--paper); }
table { border-collapse: collapse; width: 100%; font: 15px/1.4 var(--sans);
  font-variant-numeric: tabular-nums lining-nums;
  border-top: 2px solid var(--ink); border-bottom: 1px solid var(--ink); }
caption { text-align: left; font: 15px/1.5 var(--serif); color: var(--muted); padding-bottom: 9px; }
caption::before { counter-increment: table; content: "Table " counter(table) ". ";
  color: var(--ink); font-weight: 600; }
th, td { padding: 7px 14px 7px 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--grid); }
th { font-weight: 600; font-size: 13.5px; border-bottom-color: var(--rule);
  vertical-align: bottom; }
td.n, th.n { text-align: right; padding: 7px 0 7px 14px; white-space: nowrap; }
tbody th { font-size: inherit; border-bottom-color: var(--grid); font-weight: 500;
  vertical-align: baseline; }
td.best { font-weight: 700; color: var(--accent); }
.scroll tbody th { min-width: 9em; }
td.n + td:not(.n), th.n + th:not(.n) { padding-left: 22px; }
.matrix { width: auto; }
.matrix td { background: color-mix(in srgb, var(--s0) calc(var(--share, 0%) * .5), transparent); }
.matrix td.good { background: color-mix(in srgb, var(--s2) calc(var(--share, 0%) * .5),
  transparent); }
.matrix td.n { padding-right: 10px; }
.matrix th.n { padding-right: 10px; }
.matrix tbody th { position: sticky; left: 0; background: var(--paper); white-space: nowrap; }
.spread { color: var(--muted); font-weight: 400; font-size: 13px; }
.facts td, .facts th { padding-right: 24px; }
.facts th { white-space: nowrap; }
.facts td { width: 100%; overflow-wrap: anywhere; }

.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 30px 40px; margin: 26px 0; }
.charts > figure:only-child { max-width: 510px; }  /* as wide as one of two */
figure { margin: 0; break-inside: avoid; }
figcaption { font: 15px/1.45 var(--serif); color: var(--muted); margin-top: 9px; max-width: 72ch; }
.numbered > figcaption::before { counter-increment: figure;
  content: "Figure " counter(figure) ". "; color: var(--ink); font-weight: 600; }
svg { display: block; width: 100%; height: auto; font-family: var(--sans); }
svg text { fill: var(--muted); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .name { font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 4px;
  stroke-linejoin: round; }
svg .grid { stroke: var(--grid); stroke-width: 1; }
svg .axis { stroke: var(--muted); stroke-width: 1; }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .dashed { stroke-dasharray: 7 4; }
svg .bold { stroke-width: 3.4; }
svg .band { stroke: none; opacity: .17; }
svg .dot { stroke: var(--paper); stroke-width: 1.3; }
svg .hit { fill: transparent; }
svg .hit:hover { fill: var(--ink); opacity: .13; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; margin: 8px 0 0;
  padding: 0; font: 14px/1.4 var(--sans); }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 50%; margin-right: 7px;
  vertical-align: -1px; box-shadow: 0 0 0 1px var(--rule); }

.strip, .gallery, .wide { display: grid; gap: 12px; }
.wide img { width: 100%; height: auto; }
.strips { display: flex; flex-wrap: wrap; gap: 22px 28px; margin: 22px 0; }
.strips .strip { flex: 1 1 calc(var(--columns) * 240px); min-width: 0; max-width: 100%; }
.strip { grid-template-columns: repeat(var(--columns), minmax(170px, 1fr)); overflow-x: auto; }
.gallery { grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 22px;
  margin: 22px 0; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px; }
.maps + figcaption { margin-bottom: 22px; }
.maps p { font: 13.5px/1.4 var(--sans); color: var(--muted); margin: 2px 0 0; text-align: center; }
.strip figcaption, .gallery figcaption, .wide figcaption { font: 13.5px/1.4 var(--sans);
  margin-top: 6px; }
.strip b { color: var(--ink); font-weight: 600; }
img { display: block; width: 100%; height: auto; border-radius: 5px; background: var(--grid); }
footer { margin-top: 64px; padding-top: 18px; border-top: 1px solid var(--rule);
  font: 14px/1.5 var(--sans); color: var(--muted); }

@media (max-width: 640px) {
  body { font-size: 17px; }
  main { padding: 32px 18px 48px; }
  h2 { font-size: 24px; }
  .lead { font-size: 18.5px; }
  section { margin-top: 42px; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile { padding: 14px 14px 13px; }
  .tile .value { font-size: 29px; }
  .strips .strip { flex-basis: 100%; grid-template-columns: none; grid-auto-flow: column;
    grid-auto-columns: 72%; overflow-x: auto; scroll-snap-type: x proximity; padding-bottom: 6px; }
  .strip figure { scroll-snap-align: start; }
  th, td { padding-right: 10px; }
  .scroll td { white-space: nowrap; }
  .scroll caption { max-width: calc(100vw - 36px); position: sticky; left: 0; }
  .facts td, .facts th { display: block; border: 0; padding: 2px 0; }
  .facts td { padding-bottom: 9px; border-bottom: 1px solid var(--grid); }
}
@media print {
  :root { --paper: #fff; --raised: #fff; --ink: #000; --muted: #444; --rule: #bbb; --grid: #ddd;
    --tint: #f2f5f7;
    --accent: #00507f; --s0: #d55e00; --s1: #0072b2; --s2: #00875f; --s3: #a8518c; --s4: #9a7200;
    --s5: #4a5bc4; --s6: #777777; --s7: #b3304d; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  section { margin-top: 28px; }
  h2, caption { break-after: avoid; }
  .scroll { max-height: none; overflow: visible; }
  .strip, table, .tiles { break-inside: avoid; }
}
""".strip()
