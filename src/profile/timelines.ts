/** The disk over the time of a run: bytes per second, and reads under way. */
import type { Chart } from '../report/charts.ts';
import { depthOf, type RunProfile } from './profile.ts';

/** As many as a screen shows. */
const BINS = 400;

interface Bins {
  readonly prompt: number[];
  readonly answer: number[];
}

/** Spreads every read's bytes evenly over its time. */
function bytesByBin(profile: RunProfile, binMillis: number): Bins {
  const bins: Bins = { prompt: new Array<number>(BINS).fill(0), answer: new Array<number>(BINS).fill(0) };
  for (const read of profile.reads) {
    const into = read.beginMillis < profile.prompt.endMillis ? bins.prompt : bins.answer;
    const begin = (read.beginMillis - profile.beginMillis) / binMillis;
    const end = Math.max(begin + 1e-9, (read.endMillis - profile.beginMillis) / binMillis);
    for (let bin = Math.max(0, Math.floor(begin)); bin < Math.min(BINS, end); bin++) {
      const share = (Math.min(end, bin + 1) - Math.max(begin, bin)) / (end - begin);
      into[bin]! += share * read.byteLength;
    }
  }
  return bins;
}

export function throughputChart(profile: RunProfile): Chart {
  const binMillis = (profile.endMillis - profile.beginMillis) / BINS;
  const bins = bytesByBin(profile, binMillis);
  const points = (values: readonly number[]): { x: number; y: number }[] =>
    values.map((bytes, bin) => ({ x: (bin * binMillis) / 1000, y: bytes / 1e6 / binMillis }));
  return {
    kind: 'chart',
    title: 'Bytes from the disk',
    x: { label: 'time since the run began', unit: 's' },
    y: { label: 'throughput', unit: 'GB/s' },
    stacked: true,
    series: [
      { label: 'prompt', style: 'area', tone: 'teal', points: points(bins.prompt) },
      { label: 'answer', style: 'area', tone: 'orange', points: points(bins.answer) },
    ],
  };
}

/** The mean and the most of every bin: single changes would be thousands of steps. */
export function depthChart(profile: RunProfile): Chart {
  const { beginMillis, endMillis } = profile;
  const binMillis = (endMillis - beginMillis) / BINS;
  const mean = new Array<number>(BINS).fill(0);
  const most = new Array<number>(BINS).fill(0);
  const changes = depthOf(profile.reads);
  changes.forEach(({ atMillis, depth }, index) => {
    const from = (atMillis - beginMillis) / binMillis;
    const to = Math.min(BINS, ((changes[index + 1]?.atMillis ?? endMillis) - beginMillis) / binMillis);
    for (let bin = Math.max(0, Math.floor(from)); bin < to; bin++) {
      mean[bin]! += depth * (Math.min(to, bin + 1) - Math.max(from, bin));
      most[bin] = Math.max(most[bin]!, depth);
    }
  });
  const points = (values: readonly number[]): { x: number; y: number }[] =>
    values.map((y, bin) => ({ x: (bin * binMillis) / 1000, y }));
  return {
    kind: 'chart',
    title: 'Reads under way',
    x: { label: 'time since the run began', unit: 's' },
    y: { label: 'reads' },
    series: [
      { label: 'at most', style: 'step', tone: 'grey', points: points(most) },
      { label: 'on average', style: 'area', tone: 'blue', points: points(mean) },
    ],
  };
}
