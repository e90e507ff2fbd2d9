/** Another thread that writes to its trace ring when it is told to, and says when it has. */
import { parentPort, workerData } from 'node:worker_threads';
import { TRACE, Tracer } from '../../dist/pipeline/trace.js';

const tracer = new Tracer(workerData);
parentPort.on('message', (count) => {
  for (let index = 0; index < count; index++) tracer.mark(TRACE.text, 3, index, -index, 7);
  parentPort.postMessage('written');
});
