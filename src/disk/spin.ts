/**
 * A process that computes and nothing else: what keeps a core busy while a disk is measured. A process of its own, so
 * that the CPU time of the reads can be told from its own. Answers every message with the work done so far.
 */
const SLICE_MILLIS = 20;
const data = new Float64Array(16384).fill(1);
let rounds = 0;

function work(): void {
  const until = performance.now() + SLICE_MILLIS;
  while (performance.now() < until) {
    for (let index = 0; index < data.length; index++) data[index] = data[index]! * 0.999 + 0.001;
    rounds++;
  }
  setImmediate(work);
}

process.on('message', () => process.send?.({ rounds, millis: performance.now() }));
process.on('disconnect', () => process.exit());
work();
