/** What tells requests and settings apart in logs: equal for equal JSON, short enough for file names. */
import { createHash } from 'node:crypto';

export const digestOf = (value: unknown): string =>
  createHash('sha256').update(JSON.stringify(value)).digest('hex').slice(0, 16);
