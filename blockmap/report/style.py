"""Holds the page's style sheet: one column on a phone, names beside bars where there is room; light and dark as the reader has it.

Bars differ in height as well as in colour. The colours are near Okabe and Ito's, which colour-blind people can tell apart.
"""

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --text: #1a1a1a; --soft: #5c5c5c; --page: #fff; --stripe: rgb(0 0 0 / .035); --rule: #dedede; --grid: #e9e9e9;
  --store: #d55e00; --ahead: #0072b2; --cache: #009e73; --call: #7a4fa3; --wasted: #9a9a9a; --ready: #b00020;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e6e6e6; --soft: #a2a2a2; --page: #16181b; --stripe: rgb(255 255 255 / .04); --rule: #3a3d42; --grid: #2a2d31;
    --store: #f08a3c; --ahead: #56b4e9; --cache: #2bc49a; --call: #b58be0; --wasted: #7d7d7d; --ready: #ff6b7d;
  }
}
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 0; }
main { max-width: 1600px; margin: 0 auto; padding: 8px 24px 48px; }
h1 { font-size: 1.35rem; margin: 16px 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 32px 0 6px; }
p { margin: 4px 0 8px; max-width: 75em; overflow-wrap: anywhere; }
.about, .note { color: var(--soft); }
.verdict { font-size: 1.2rem; line-height: 1.35; margin: 14px 0 4px; max-width: 60em; }
.tag { display: inline-block; min-width: 1.5em; text-align: center; border: 1px solid var(--rule); border-radius: 4px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; list-style: none; margin: 10px 0; padding: 0; font-size: .87rem; }
.legend li { display: flex; align-items: center; gap: 7px; }
.swatch { flex: none; width: 22px; height: 14px; display: flex; align-items: center; justify-content: center; }
.swatch i { display: block; width: 100%; }
.swatch .store { height: 100%; background: var(--store); }
.swatch .ahead { height: 75%; background: var(--ahead); }
.swatch .cache { height: 50%; background: var(--cache); }
.swatch .call { height: 100%; background: var(--call); }
.swatch .covered { height: 100%; background: var(--cache); }
.swatch .missed { height: 100%; background: var(--store); }
.swatch .wasted { height: 100%; background: var(--wasted); }
.swatch .ready, .swatch .first { width: 0; height: 100%; border-left: 2px solid var(--ready); }
.swatch .first { border-left: 2px dashed var(--soft); }
.falls { --names: 320px; --figure: 84px; --gap: 12px; border-bottom: 1px solid var(--rule); }
.row { display: grid; grid-template-columns: var(--names) minmax(0, 1fr) var(--figure) var(--figure); gap: 0 var(--gap); }
.row { font-size: .87rem; line-height: 1.25; }
.row > * { padding: 3px 0; }
.falls > .row:nth-child(even), .falls > details:nth-child(even) > summary { background: var(--stripe); }
.row .name { overflow-wrap: anywhere; padding-left: 18px; }
summary { cursor: pointer; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary .name::before { content: "\\25B8"; display: inline-block; width: 14px; margin-left: -16px; color: var(--soft); }
details[open] > summary .name::before { content: "\\25BE"; }
details .row .name { padding-left: 34px; font-size: .95em; }
details summary.row .name { padding-left: 18px; font-size: 1em; }
summary:focus-visible { outline: 2px solid var(--ahead); outline-offset: -2px; }
.lanes { background: var(--lines); }
.lane { display: flex; align-items: center; height: 16px; }
.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figure span { display: block; height: 16px; line-height: 16px; }
.two .lane + .lane { margin-top: 2px; }
.two .figure span + span { margin-top: 2px; }
svg { display: block; width: 100%; height: 16px; overflow: visible; }
rect { vector-effect: non-scaling-stroke; stroke-width: 1.5px; }
svg .store { fill: var(--store); stroke: var(--store); }
svg .ahead { fill: var(--ahead); stroke: var(--ahead); }
svg .cache { fill: var(--cache); stroke: var(--cache); }
svg .call { fill: var(--call); stroke: var(--call); }
.head { color: var(--soft); border-bottom: 1px solid var(--rule); background: var(--page); align-items: end; }
.head { position: sticky; top: 0; z-index: 1; }
.head .lanes { background: none; padding: 0; }
.axis, .flags { position: relative; height: 18px; }
.axis span, .flags span { position: absolute; white-space: nowrap; transform: translateX(-50%); }
.flags span { transform: none; padding: 0 5px; color: var(--text); }
.flags .left { transform: translateX(-100%); }
table { border-collapse: collapse; width: 100%; max-width: 75em; font-size: .87rem; }
th, td { text-align: left; vertical-align: top; padding: 3px 16px 3px 0; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; }
td { overflow-wrap: anywhere; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.whole { white-space: nowrap; }
tr > :last-child { padding-right: 0; }
.shares { display: flex; height: 16px; max-width: 75em; font-size: .87rem; margin: 8px 0; background: var(--stripe); }
.shares .covered { background: var(--cache); }
.shares .missed { background: var(--store); }
.shares .wasted { background: var(--wasted); }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 8px 40px; }
@media (max-width: 760px) {
  main { padding: 4px 14px 32px; }
  .verdict { font-size: 1.1rem; }
  .falls { --figure: 72px; }
  .row { grid-template-columns: minmax(0, 1fr) var(--figure) var(--figure); }
  .lanes { grid-column: 1 / -1; grid-row: 2; }
  .head .lanes { grid-row: 1; }
  .head .name, .head .figure { grid-row: 2; }
  .axis .minor { display: none; }
  td, th { padding-right: 10px; }
}
"""
