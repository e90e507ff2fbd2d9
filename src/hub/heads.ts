/**
 * The memory plan of a model that is not here yet.
 *
 * A plan needs the shapes, and those stand in the files' heads: 11 MB of the 397B's first part, a few hundred KB of the
 * others. So the heads are fetched into files that have the right length and holes for the rest, and the same code opens
 * and plans them that will open the model. Nothing of them is kept.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { settingsOf } from '../engine/options.ts';
import { planOf } from '../engine/planning.ts';
import { MoestreamError } from '../errors.ts';
import { openModel } from '../model/model.ts';
import { makeFolder, writeError } from '../pack/disk.ts';
import type { MemoryPlan } from '../pipeline/plan.ts';
import { slotCount } from '../pipeline/slab.ts';
import { fetchRange } from './http.ts';
import { fileUrl, type Hub, type ModelSet, type RemoteFile } from './listing.ts';

export interface HeadPlan {
  readonly plan: MemoryPlan;
  /** Of all experts, how many the slab holds. */
  readonly slabShare: number;
}

/** Tried in this order, for every file of the set: a small head is enough for most. */
const HEAD_BYTES = [512 * 1024, 16 * 1024 ** 2, 64 * 1024 ** 2] as const;
/** Configuration and vocabulary are fetched whole. */
const WHOLE_BYTES_MAX = 64 * 1024 ** 2;

/** Plans a set for this machine. Throws PLAN_REFUSED, MODEL_INVALID, MODEL_UNSUPPORTED or what the network throws. */
export async function planBeforehand(
  hub: Hub,
  repository: string,
  commit: string,
  set: ModelSet,
): Promise<HeadPlan> {
  const folder = mkdtempSync(join(tmpdir(), 'moestream-plan-'));
  try {
    for (const [attempt, headBytes] of HEAD_BYTES.entries()) {
      for (const file of set.files) {
        await fetchHead(
          fileUrl(hub, repository, commit, file.path),
          hub,
          file,
          headBytes,
          join(folder, file.path),
        );
      }
      try {
        return planAt(set.entry === '.' ? folder : join(folder, set.entry));
      } catch (error) {
        const isCut = MoestreamError.is(error) && error.code === 'MODEL_INVALID';
        if (!isCut || attempt === HEAD_BYTES.length - 1) throw error;
      }
    }
    throw new MoestreamError('INTERNAL', 'no head was tried');
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function fetchHead(
  url: string,
  hub: Hub,
  file: RemoteFile,
  headBytes: number,
  path: string,
): Promise<void> {
  const { sizeBytes } = file;
  const isModel = /\.(gguf|safetensors)$/i.test(file.path);
  const byteLength = Math.min(sizeBytes, isModel ? headBytes : WHOLE_BYTES_MAX);
  makeFolder(dirname(path));
  try {
    const handle = await open(path, 'w');
    try {
      await handle.truncate(sizeBytes);
      await fetchRange(url, hub.network, { offsetBytes: 0, byteLength, sizeBytes }, async (bytes, at) => {
        await handle.write(bytes, 0, bytes.length, at);
      });
    } finally {
      await handle.close();
    }
  } catch (cause) {
    throw MoestreamError.is(cause) ? cause : writeError(path, cause);
  }
}

function planAt(path: string): HeadPlan {
  const model = openModel(path);
  const { plan, config } = planOf(model, settingsOf({ model: path }));
  return { plan, slabShare: slotCount(plan.slab) / (config.layers * config.experts) };
}
