/** The profile as plain numbers with stable names: what `--json` prints, and what tables and pages are made of. */
import type { GenerationResult } from '../engine/generation.ts';
import type { DistributionFigures } from './distribution.ts';
import { noMillis, PARTS, type Part, type PartMillis, sumMillis } from './parts.ts';
import type { DiskProfile, LayerProfile, Occupancy, PhaseProfile, RunProfile } from './profile.ts';

export interface ProfileSubject {
  readonly model: string;
  readonly layers: number;
  readonly experts: number;
  readonly expertsPerToken: number;
  readonly slots: number;
  readonly readEngine: string;
  readonly version: string;
}

export interface LayerFigures {
  readonly layer: number;
  readonly partMillis: PartMillis;
  readonly compute: DistributionFigures;
  readonly readWait: DistributionFigures;
  readonly lookups: number;
  readonly hits: number;
  readonly lateHits: number;
  readonly misses: number;
  readonly reads: number;
  readonly prefetchReads: number;
  readonly bytesRead: number;
}

export interface PhaseFigures {
  readonly tokens: number;
  readonly steps: number;
  readonly totalMillis: number;
  readonly tokensPerSecond: number;
  readonly partMillis: PartMillis;
  /** Of the total, 0 to 1; with `unaccountedShare` they sum to 1. */
  readonly partShares: PartMillis;
  readonly unaccountedMillis: number;
  readonly unaccountedShare: number;
  readonly stepTime: DistributionFigures;
  /** Of each part, per step. */
  readonly partTimes: Readonly<Record<Part, DistributionFigures>>;
  readonly stages: Readonly<Record<string, DistributionFigures>>;
  readonly layers: readonly LayerFigures[];
  readonly disk: DiskFigures;
}

export interface DiskFigures {
  readonly reads: number;
  readonly bytesRead: number;
  readonly prefetchBytes: number;
  readonly busyMillis: number;
  readonly busyShare: number;
  readonly gigabytesPerSecondBusy: number;
  readonly gigabytesPerSecond: number;
  readonly meanDepth: number;
  readonly mostDepth: number;
  readonly latency: DistributionFigures;
  readonly queued: DistributionFigures;
}

export interface ProfileFigures {
  readonly subject: ProfileSubject;
  readonly result: GenerationResult;
  readonly prompt: PhaseFigures;
  readonly answer: PhaseFigures;
  /** From the last step's end to the run's: the last token is chosen and sent. */
  readonly endMillis: number;
  readonly occupancy: readonly Occupancy[];
  readonly eventsKept: number;
  readonly eventsLost: number;
}

const over = (part: number, whole: number): number => (whole > 0 ? part / whole : 0);

function layerFigures(layer: LayerProfile, number: number): LayerFigures {
  const { lookups, hits, lateHits, reads, prefetchReads, bytesRead } = layer;
  return {
    layer: number,
    partMillis: layer.parts,
    compute: layer.compute.figures,
    readWait: layer.readWait.figures,
    lookups,
    hits,
    lateHits,
    misses: lookups - hits - lateHits,
    reads,
    prefetchReads,
    bytesRead,
  };
}

function diskFigures(disk: DiskProfile, totalMillis: number): DiskFigures {
  const { latency, queued, ...plain } = disk;
  return {
    ...plain,
    busyShare: over(disk.busyMillis, totalMillis),
    gigabytesPerSecondBusy: over(disk.bytesRead / 1e6, disk.busyMillis),
    gigabytesPerSecond: over(disk.bytesRead / 1e6, totalMillis),
    latency: latency.figures,
    queued: queued.figures,
  };
}

function phaseFigures(phase: PhaseProfile): PhaseFigures {
  const totalMillis = phase.endMillis - phase.beginMillis;
  const shares = noMillis();
  for (const part of PARTS) shares[part] = over(phase.parts[part], totalMillis);
  const unaccountedMillis = totalMillis - sumMillis(phase.parts);
  return {
    tokens: phase.tokens,
    steps: phase.steps.length,
    totalMillis,
    tokensPerSecond: over(phase.tokens * 1000, totalMillis),
    partMillis: phase.parts,
    partShares: shares,
    unaccountedMillis,
    unaccountedShare: over(unaccountedMillis, totalMillis),
    stepTime: phase.stepTime.figures,
    partTimes: {
      compute: phase.partTimes.compute.figures,
      disk: phase.partTimes.disk.figures,
      handOffs: phase.partTimes.handOffs.figures,
      sampling: phase.partTimes.sampling.figures,
      scheduling: phase.partTimes.scheduling.figures,
    },
    stages: Object.fromEntries([...phase.kinds].map(([kind, found]) => [kind, found.figures])),
    layers: phase.layers.map(layerFigures),
    disk: diskFigures(phase.disk, totalMillis),
  };
}

export function figuresOf(
  profile: RunProfile,
  subject: ProfileSubject,
  result: GenerationResult,
): ProfileFigures {
  return {
    subject,
    result,
    prompt: phaseFigures(profile.prompt),
    answer: phaseFigures(profile.answer),
    endMillis: profile.endMillis - profile.answer.endMillis,
    occupancy: profile.occupancy,
    eventsKept: profile.eventsKept,
    eventsLost: profile.eventsLost,
  };
}
