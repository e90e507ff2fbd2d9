/** The profile as a page: where token time goes, when, in which layer, and how the disk and the rings took it. */
import { formatBytes } from '../pipeline/memory.ts';
import type { RecordedTrace } from '../pipeline/trace-log.ts';
import type { Block, Facts, Shares, Table } from '../report/blocks.ts';
import { type Chart, histogramChart, type Series, type Tone } from '../report/charts.ts';
import type { Page, Section } from '../report/page.ts';
import type { Distribution, DistributionFigures } from './distribution.ts';
import type { PhaseFigures, ProfileFigures } from './figures.ts';
import { PART_LABELS, PARTS, type Part } from './parts.ts';
import type { PhaseProfile, RunProfile, Step } from './profile.ts';
import { digits, prefetchRows } from './text.ts';
import { depthChart, throughputChart } from './timelines.ts';
import { waterfallOf } from './waterfall.ts';

export const PART_TONES: Readonly<Record<Part, Tone>> = {
  compute: 'blue',
  disk: 'orange',
  handOffs: 'red',
  sampling: 'green',
  scheduling: 'purple',
};

const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;
const rounded = (value: number): number => Number(value.toPrecision(3));

export function profilePage(figures: ProfileFigures, profile: RunProfile, trace: RecordedTrace): Page {
  const { subject, prompt, answer } = figures;
  const sections: Section[] = [
    overview(figures),
    tokens(profile, trace),
    byLayer('Layers of the answer', answer),
    byLayer('Layers of the prompt', prompt),
    disk(figures, profile),
    readAhead(figures),
    stageTables(figures),
    ringTable(figures),
  ];
  return {
    title: `Profile of ${subject.model}`,
    subtitle:
      `${subject.layers} layers of ${subject.experts} experts, ${subject.expertsPerToken} per token; ` +
      `${subject.slots} slots in memory; read with ${subject.readEngine}`,
    sections: sections.filter(({ blocks }) => blocks.length > 0),
    footer: `moestream ${subject.version}`,
  };
}

function overview(figures: ProfileFigures): Section {
  const { prompt, answer, result, eventsLost } = figures;
  const { stats } = result;
  const facts: Facts = {
    kind: 'facts',
    facts: [
      { label: 'answer', value: `${digits(answer.tokensPerSecond)} tok/s` },
      { label: 'token, p50', value: `${digits(answer.stepTime.p50Millis)} ms` },
      { label: 'token, p99', value: `${digits(answer.stepTime.p99Millis)} ms` },
      { label: 'prompt', value: `${digits(prompt.tokensPerSecond)} tok/s` },
      { label: 'experts hit', value: percent(stats.hitRate) },
      { label: 'read', value: formatBytes(stats.bytesRead) },
      { label: 'disk, while busy', value: `${digits(answer.disk.gigabytesPerSecondBusy)} GB/s` },
      { label: 'tokens', value: `${prompt.tokens} + ${answer.tokens}` },
    ],
  };
  const lost: Block[] =
    eventsLost === 0
      ? []
      : [
          {
            kind: 'text',
            text: `${eventsLost} events were lost: times and counts are too low by what they were.`,
          },
        ];
  const note =
    'Disk is the time in which compute had nothing to do and a read was under way; hand-offs is the time in which it ' +
    'waited and none was.';
  return {
    title: 'What token time is bound by',
    blocks: [
      facts,
      ...lost,
      shares('Answer (decode)', answer, note),
      shares('Prompt (prefill)', prompt, undefined),
    ],
  };
}

function shares(title: string, phase: PhaseFigures, note: string | undefined): Shares {
  const parts = PARTS.map((part) => ({
    label: PART_LABELS[part],
    value: phase.partMillis[part],
    tone: PART_TONES[part],
  }));
  const rest = phase.unaccountedMillis;
  const unaccounted = { label: 'not accounted for', value: rest, tone: 'grey' as const };
  return {
    kind: 'shares',
    title,
    ...(note === undefined ? {} : { note }),
    unit: 'ms',
    parts: rest > 0.001 * phase.totalMillis ? [...parts, unaccounted] : parts,
  };
}

function tokens(profile: RunProfile, trace: RecordedTrace): Section {
  const { answer, prompt } = profile;
  const blocks: Block[] = [];
  const sorted = answer.steps.toSorted((a, b) => lengthOf(a) - lengthOf(b));
  const typical = sorted[sorted.length >> 1];
  const slowest = sorted.at(-1);
  const firstChunk = prompt.steps[0];
  if (answer.steps.length > 1)
    blocks.push(stepChart(answer), timeHistogram('Time per token', 'tokens', answer));
  if (typical !== undefined) blocks.push(waterfallOf(trace, typical, `A typical token (${at(typical)})`));
  if (slowest !== undefined && slowest !== typical) {
    blocks.push(waterfallOf(trace, slowest, `The slowest token (${at(slowest)})`));
  }
  if (firstChunk !== undefined) {
    blocks.push(waterfallOf(trace, firstChunk, `The prompt's first chunk (${firstChunk.rows} tokens)`));
  }
  return { title: 'Tokens', blocks };
}

const lengthOf = (step: Step): number => step.endMillis - step.beginMillis;
const at = (step: Step): string => `position ${step.position}, ${digits(lengthOf(step))} ms`;

function stepChart(phase: PhaseProfile): Chart {
  const first = phase.steps[0]?.position ?? 0;
  // A stair needs its right edge.
  const last = phase.steps.slice(-1);
  const series: Series[] = PARTS.map((part) => ({
    label: PART_LABELS[part],
    style: 'area',
    tone: PART_TONES[part],
    points: [...phase.steps, ...last].map((step, index) => ({
      x: first + index,
      y: step.parts[part],
    })),
  }));
  return {
    kind: 'chart',
    title: 'Where each token of the answer spent its time',
    x: { label: 'position' },
    y: { label: 'time', unit: 'ms' },
    stacked: true,
    series,
  };
}

function timeHistogram(title: string, of: string, phase: PhaseProfile): Chart {
  return distributionChart(title, of, phase.stepTime, 'blue');
}

function distributionChart(title: string, of: string, distribution: Distribution, tone: Tone): Chart {
  const { p50Millis, p90Millis, p99Millis } = distribution.figures;
  const mark = (name: string, x: number): { x: number; label: string } => ({
    x,
    label: `${name} ${digits(x)} ms`,
  });
  return histogramChart({
    title,
    x: { label: 'time', unit: 'ms', scale: 'log' },
    of,
    buckets: distribution.buckets,
    tone,
    marks: [mark('p50', p50Millis), mark('p90', p90Millis), mark('p99', p99Millis)],
  });
}

const LAYER_PARTS = ['compute', 'disk', 'handOffs', 'scheduling'] as const;

function byLayer(title: string, phase: PhaseFigures): Section {
  const { layers, steps } = phase;
  if (steps === 0) return { title, blocks: [] };
  const categories = layers.map(({ layer }) => String(layer));
  const time: Chart = {
    kind: 'chart',
    title: phase.steps === phase.tokens ? 'Time per token' : 'Time per chunk',
    x: { label: 'layer', categories },
    y: { label: 'mean time', unit: 'ms' },
    stacked: true,
    series: LAYER_PARTS.map((part) => ({
      label: PART_LABELS[part],
      style: 'bars',
      tone: PART_TONES[part],
      points: layers.map((each) => ({ x: each.layer, y: each.partMillis[part] / steps })),
    })),
  };
  const share = (count: number, lookups: number): number => (lookups === 0 ? 0 : (100 * count) / lookups);
  const hits: Chart = {
    kind: 'chart',
    title: 'Wanted experts that were in memory, on their way, or neither',
    x: { label: 'layer', categories },
    y: { label: 'share of lookups', unit: '%' },
    stacked: true,
    series: [
      {
        label: 'hit',
        style: 'bars',
        tone: 'green',
        points: layers.map((each) => ({ x: each.layer, y: share(each.hits, each.lookups) })),
      },
      {
        label: 'late',
        style: 'bars',
        tone: 'yellow',
        points: layers.map((each) => ({ x: each.layer, y: share(each.lateHits, each.lookups) })),
      },
      {
        label: 'missed',
        style: 'bars',
        tone: 'grey',
        points: layers.map((each) => ({ x: each.layer, y: share(each.misses, each.lookups) })),
      },
    ],
  };
  return { title, blocks: [time, hits, layerTable(phase)] };
}

function layerTable({ layers, steps }: PhaseFigures): Table {
  const ms = { unit: 'ms' };
  return {
    kind: 'table',
    note: 'Wait is the time in which compute had nothing to do until a read of this layer ended.',
    columns: [
      { label: 'layer' },
      { label: 'compute p50', ...ms },
      { label: 'compute p90', ...ms },
      { label: 'compute p99', ...ms },
      { label: 'wait p50', ...ms },
      { label: 'wait p90', ...ms },
      { label: 'wait p99', ...ms },
      { label: 'lookups' },
      { label: 'hits' },
      { label: 'late' },
      { label: 'reads' },
      { label: 'prefetched' },
      { label: 'read', unit: 'MB per step' },
    ],
    rows: layers.map((each) => [
      each.layer,
      ...[each.compute.p50Millis, each.compute.p90Millis, each.compute.p99Millis].map(rounded),
      ...[each.readWait.p50Millis, each.readWait.p90Millis, each.readWait.p99Millis].map(rounded),
      each.lookups,
      each.hits,
      each.lateHits,
      each.reads,
      each.prefetchReads,
      rounded(each.bytesRead / 1e6 / Math.max(1, steps)),
    ]),
  };
}

function disk(figures: ProfileFigures, profile: RunProfile): Section {
  if (profile.reads.length === 0)
    return { title: 'Disk', blocks: [{ kind: 'text', text: 'Nothing was read.' }] };
  const row = (name: string, phase: PhaseFigures): (string | number)[] => {
    const { reads, bytesRead, busyShare, gigabytesPerSecondBusy, meanDepth, mostDepth, latency, queued } =
      phase.disk;
    return [
      name,
      reads,
      formatBytes(bytesRead),
      formatBytes(phase.disk.prefetchBytes),
      percent(busyShare),
      ...[gigabytesPerSecondBusy, phase.disk.gigabytesPerSecond, meanDepth].map(rounded),
      mostDepth,
      ...[latency.p50Millis, latency.p99Millis, queued.p50Millis].map(rounded),
    ];
  };
  const table: Table = {
    kind: 'table',
    columns: [
      ...['phase', 'reads', 'bytes', 'prefetched', 'busy'].map((label) => ({ label })),
      { label: 'while busy', unit: 'GB/s' },
      { label: 'over all', unit: 'GB/s' },
      { label: 'depth' },
      { label: 'most' },
      { label: 'read p50', unit: 'ms' },
      { label: 'read p99', unit: 'ms' },
      { label: 'queued p50', unit: 'ms' },
    ],
    rows: [row('prompt', figures.prompt), row('answer', figures.answer)],
  };
  const phase = profile.answer.disk.reads > 0 ? profile.answer : profile.prompt;
  return {
    title: 'Disk',
    blocks: [
      table,
      throughputChart(profile),
      depthChart(profile),
      distributionChart(`Time of a read (${phase.name})`, 'reads', phase.disk.latency, 'orange'),
      ...(phase.disk.queued.count === 0
        ? []
        : [
            distributionChart(
              `From asking to the read's beginning (${phase.name})`,
              'reads',
              phase.disk.queued,
              'yellow',
            ),
          ]),
    ],
  };
}

function readAhead(figures: ProfileFigures): Section {
  const rows = prefetchRows(figures).map(([what, value]) => [what.trim(), value]);
  const columns = [{ label: 'what' }, { label: 'how much', align: 'right' as const }];
  return { title: 'Reading ahead', blocks: rows.length === 0 ? [] : [{ kind: 'table', columns, rows }] };
}

function stageTables(figures: ProfileFigures): Section {
  const table = (title: string, phase: PhaseFigures): Table => {
    const row = (name: string, each: DistributionFigures): (string | number)[] => [
      name,
      each.count,
      ...[
        each.meanMillis,
        each.p50Millis,
        each.p90Millis,
        each.p99Millis,
        each.maxMillis,
        each.totalMillis,
      ].map(rounded),
    ];
    return {
      kind: 'table',
      title,
      columns: [
        { label: 'what' },
        { label: 'times' },
        ...['mean', 'p50', 'p90', 'p99', 'longest', 'total'].map((label) => ({ label, unit: 'ms' })),
      ],
      rows: [
        row('step', phase.stepTime),
        ...PARTS.map((part) => row(`${PART_LABELS[part]}, per step`, phase.partTimes[part])),
        ...Object.entries(phase.stages).map(([name, each]) => row(name, each)),
      ],
    };
  };
  const names =
    'A step is a chunk of the prompt or a token of the answer. mix is norm, mixer and router; shared the shared expert; ' +
    'combine the sum of the experts; admit looks for the experts in memory and asks for the others; schedule takes note of ' +
    'arrivals; hints takes predictions. sample and deliver are the sampling thread, predict is the predicting one.';
  return {
    title: 'Stages',
    blocks: [{ kind: 'text', text: names }, table('Answer', figures.answer), table('Prompt', figures.prompt)],
  };
}

function ringTable(figures: ProfileFigures): Section {
  const table: Table = {
    kind: 'table',
    note: 'Looked at every 5 ms.',
    columns: [{ label: 'what' }, { label: 'room' }, { label: 'mean' }, { label: 'most' }],
    rows: figures.occupancy.map(({ name, most, mean, highest }) => [name, most, rounded(mean), highest]),
  };
  return { title: 'Rings and queues', blocks: [table] };
}
