/** Feeds ids that are known into compute's rings, as fast as it takes them. */
import { END_OF_TOKENS, PROMPT_TOKENS_MAX } from '../pipeline/messages.ts';
import type { SpscRing } from '../pipeline/ring.ts';
import type { ActiveRun } from './active-run.ts';

/** How long to sleep on a full ring before looking whether the run still lives. */
const LOOK_MILLIS = 1000;

export async function feedPrompt(ring: SpscRing, ids: readonly number[], active: ActiveRun): Promise<void> {
  for (let next = 0; next < ids.length; ) {
    const slot = await ring.reserveAsync(LOOK_MILLIS);
    if (active.failed) return;
    if (slot < 0) continue;
    const count = Math.min(PROMPT_TOKENS_MAX, ids.length - next);
    ring.words[slot] = count;
    for (let index = 0; index < count; index++) ring.words[slot + 1 + index] = ids[next + index]!;
    ring.commit();
    next += count;
  }
}

/** In the sampler's place: an answer that is known, and its end. */
export async function feedTokens(ring: SpscRing, ids: readonly number[], active: ActiveRun): Promise<void> {
  for (let next = 0; next <= ids.length; ) {
    const slot = await ring.reserveAsync(LOOK_MILLIS);
    if (active.failed) return;
    if (slot < 0) continue;
    ring.words[slot] = ids[next] ?? END_OF_TOKENS;
    ring.commit();
    next++;
  }
}
