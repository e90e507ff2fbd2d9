/** The look of a report. Tones have a light and a dark shade; the page's script reads them from here too. */
import { TONES } from './charts.ts';

/** Distinguishable for colour-blind readers, and by lightness on paper. */
const LIGHT = {
  blue: '#2f6fb7',
  orange: '#d9822b',
  green: '#2e8b57',
  red: '#c0392b',
  purple: '#7a5aa6',
  teal: '#2a9d9d',
  yellow: '#c9a712',
  grey: '#8a919c',
} as const;

const DARK = {
  blue: '#6aa7ec',
  orange: '#f0a75b',
  green: '#63c089',
  red: '#ec7a6d',
  purple: '#b296dd',
  teal: '#5fcaca',
  yellow: '#e3cb55',
  grey: '#8a919c',
} as const;

const tones = (shades: Readonly<Record<string, string>>): string =>
  TONES.map((tone) => `--${tone}:${shades[tone]};`).join('');

const LIGHT_VARIABLES = `--paper:#fff;--ink:#1d2228;--soft:#5c6570;--line:#dfe3e8;--panel:#f6f7f9;${tones(LIGHT)}`;
const DARK_VARIABLES = `--paper:#15181c;--ink:#e6e9ed;--soft:#9aa4b0;--line:#323840;--panel:#1e2227;${tones(DARK)}`;

export const STYLE = `
:root{${LIGHT_VARIABLES}color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{${DARK_VARIABLES}}}
@media print{:root{${LIGHT_VARIABLES}color-scheme:light}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1160px;padding:24px 20px 40px;background:var(--paper);color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:26px;line-height:1.25;margin:0}
h2{font-size:19px;margin:36px 0 8px;padding-bottom:6px;border-bottom:1px solid var(--line)}
h3{font-size:15px;margin:0 0 4px}
header p,footer p{color:var(--soft);margin:4px 0}
footer{margin-top:36px;font-size:13px}
p{margin:8px 0;max-width:75ch}
.note,.pointed{color:var(--soft);font-size:13px;margin:0 0 8px}
.pointed{min-height:20px;white-space:pre-wrap}
figure{margin:20px 0 24px}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(128px,1fr));gap:10px;margin:14px 0}
.facts div{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:8px 12px}
.facts dt{color:var(--soft);font-size:13px}
.facts dd{margin:0;font-size:18px;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:4px 12px 4px 0;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:600;vertical-align:bottom}
th small{font-weight:400}
.right{text-align:right}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:6px 0;padding:0;font-size:13px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:6px}
.legend b{font-weight:600;font-variant-numeric:tabular-nums}
.shares{display:flex;height:30px;border-radius:4px;overflow:hidden;background:var(--panel)}
.shares i{display:block;height:100%}
.waterfall{font-size:12px}
.waterfall>div{display:flex;align-items:center;height:19px}
.waterfall b{flex:0 0 88px;font-weight:400;color:var(--soft);text-align:right;padding-right:8px;
  overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.waterfall .track{position:relative;flex:1;height:100%;
  background:repeating-linear-gradient(90deg,var(--line) 0 1px,transparent 1px var(--step))}
.waterfall i{position:absolute;top:2px;bottom:2px;min-width:.5px}
.waterfall .axis>span{position:relative;flex:1;height:16px;color:var(--soft)}
.waterfall .axis>span span{position:absolute;transform:translateX(-50%);white-space:nowrap}
.waterfall .axis>span span:first-child{transform:none}
.waterfall .axis>span span.edge{transform:translateX(-100%)}
${TONES.map((tone) => `i.${tone}{background:var(--${tone})}`).join('')}
i{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.chart{min-height:300px}
.uplot{font-family:inherit}
.u-legend{font-size:13px;text-align:left;margin-top:4px}
.u-legend th,.u-legend td{border:0;padding:1px 4px;white-space:normal}
.u-legend.u-inline .u-series>*{padding:1px 4px}
@media print{section{break-inside:auto}figure,.facts{break-inside:avoid}body{max-width:none;padding:0}
  .wide{overflow:visible}table{font-size:11px}}
`;
