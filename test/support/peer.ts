import { once } from 'node:events';
import { Worker } from 'node:worker_threads';

export interface PeerAnswer {
  readonly ok?: boolean;
  readonly why?: string;
  readonly tickets?: number[];
}

/** Starts a thread with one side of a ring; resolves when it is about to begin. */
export async function startPeer(
  data: Record<string, unknown>,
): Promise<{ answer: Promise<PeerAnswer>; worker: Worker }> {
  const worker = new Worker(new URL('./ring-peer.mjs', import.meta.url), { workerData: data });
  await once(worker, 'message');
  const answer = once(worker, 'message').then(([message]) => message as PeerAnswer);
  return { answer, worker };
}
