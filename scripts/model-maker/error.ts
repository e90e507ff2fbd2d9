/**
 * The one way in which making a model fails on purpose.
 *
 * Why not MoestreamError: its codes are the package's public API, and a full disk while writing is no failure that the
 * package can have. `kind` is what the command line turns into an exit code.
 */
export type MakeModelFailure = 'usage' | 'disk' | 'interrupted';

export class MakeModelError extends Error {
  override readonly name = 'MakeModelError';
  readonly kind: MakeModelFailure;

  constructor(kind: MakeModelFailure, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.kind = kind;
  }
}
