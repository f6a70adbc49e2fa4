"""The style sheet of the page: light and dark, phone and desktop, screen and paper."""

CSS = """
:root {
  color-scheme: light dark;
  --bg: #ffffff; --ink: #1b1f24; --muted: #5c6570; --line: #e2e5e9; --shade: #f3f5f7;
  --good: #1a7f37; --bad: #c5221f; --doubt: #8a5a00;
  --s1: #0067a8; --s2: #d55e00; --s3: #00845f; --s4: #a3468a;
  --s5: #b07800; --s6: #2f95c9; --s7: #6b7280; --s8: #1b1f24;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #12161b; --ink: #e4e7eb; --muted: #99a3ae; --line: #2b323a; --shade: #1a2027;
    --good: #56c271; --bad: #ff7b72; --doubt: #e3b341;
    --s1: #58a8e8; --s2: #ff9350; --s3: #36c79b; --s4: #dd8fc6;
    --s5: #e3b341; --s6: #8fd3f4; --s7: #9aa4b2; --s8: #e4e7eb;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--bg); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans",
    "DejaVu Sans", sans-serif;
}
main { max-width: 872px; margin: 0 auto; padding: 32px 16px 48px; }
h1, h2, h3, p, ul, dl, figure { margin: 0; }
h1 { font-size: 1.6rem; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; }
h2 { font-size: 1.125rem; font-weight: 650; margin: 44px 0 12px; }
h3 { font-size: 1rem; font-weight: 650; margin: 24px 0 8px; }
h1, h2, h3, p, li, dd, td, th, summary { overflow-wrap: anywhere; }
.small { font-size: .875rem; color: var(--muted); }
header .small { margin-top: 4px; }
.verdict {
  margin: 20px 0 16px; padding: 10px 0 10px 16px; border-left: 4px solid var(--good);
}
.verdict > strong { font-size: 1.125rem; color: var(--good); }
.bad > strong, .missed { color: var(--bad); }
.doubt > strong { color: var(--doubt); }
.met { color: var(--good); }
.bad { border-color: var(--bad); }
.doubt { border-color: var(--doubt); }
.verdict ul { margin-top: 2px; padding-left: 1.2em; }
.targets { width: auto; margin-top: 4px; }
.targets td { padding: 2px 16px 2px 0; border: 0; white-space: normal;
  overflow-wrap: break-word; }
.figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(104px, 1fr));
  gap: 16px; margin: 20px 0 0; padding: 16px 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line);
}
.figures dt { font-size: .8125rem; color: var(--muted); }
.figures dd { margin: 0; font-size: 1.375rem; line-height: 1.3; font-weight: 600;
  font-variant-numeric: tabular-nums; letter-spacing: -.01em; }
.figures dd small { display: block; font-size: .8125rem; font-weight: 400; letter-spacing: 0;
  color: var(--muted); }
svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: inherit; font-variant-numeric: tabular-nums; }
svg.narrow { display: none; }
@media (max-width: 640px) {
  main { padding-top: 20px; }
  svg.wide { display: none; }
  svg.narrow { display: block; max-width: 480px; margin: 0 auto; }
  .figures { grid-template-columns: repeat(3, 1fr); gap: 14px 12px; }
  .figures dd { font-size: 1.2rem; }
}
.key { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 8px 0 0; padding: 0;
  list-style: none; font-size: .875rem; color: var(--muted); }
.swatch { display: inline-block; width: 20px; margin-right: 7px; vertical-align: middle;
  border-top: 3px solid; }
.dashed { border-top-style: dashed; }
.diamond { display: inline-block; width: 7px; height: 7px; margin: 0 10px 1px 4px;
  border: 1.5px solid; transform: rotate(45deg); }
figcaption { font-size: .875rem; color: var(--muted); margin-top: 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--muted); text-align: left; vertical-align: bottom; }
td { vertical-align: top; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; }
.words { white-space: nowrap; }
.small + .scroll, .scroll + p:not(.small) { margin-top: 12px; }
td:first-child { min-width: 8.5em; }
.facts td:first-child, .targets td:first-child { min-width: 0; }
.facts { width: auto; }
.facts th { font-weight: 400; padding-right: 24px; vertical-align: top; }
details { margin-top: 12px; }
summary { cursor: pointer; font-size: .875rem; color: var(--muted); }
details[open] > summary { margin-bottom: 8px; }
.run { border-top: 1px solid var(--line); padding-top: 12px; }
.run > summary { font-size: 1rem; color: var(--ink); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible {
  outline: 2px solid var(--s1); outline-offset: 2px; }
footer { margin-top: 48px; }
@media print {
  main { max-width: none; padding: 0; }
  figure, table, .figures { break-inside: avoid; }
}
"""
