/** Errors of the API, and what they mean to the page. */

/** Codes of problem+json, as in crates/holdfast-api/src/problem.rs, and two of the page's own. */
export type Code =
  | 'bad_request'
  | 'unauthorized'
  | 'forbidden'
  | 'not_found'
  | 'method_not_allowed'
  | 'conflict'
  | 'gone'
  | 'too_large'
  | 'unsupported_media_type'
  | 'invalid'
  | 'idempotency_key_reused'
  | 'tool_failed'
  | 'upgrade_required'
  | 'full'
  | 'internal'
  | 'vm_unreachable'
  | 'unavailable'
  /** No answer arrived. */
  | 'network'
  /** An answer that is not Holdfast's, such as a proxy's. */
  | 'unknown';

/** A request that did not succeed. */
export class ApiError extends Error {
  readonly code: Code;
  readonly status: number;
  readonly reason: string | undefined;
  readonly field: string | undefined;
  readonly requestId: string | undefined;
  /** Seconds. */
  readonly retryAfter: number | undefined;

  constructor(
    code: Code,
    status: number,
    message: string,
    more: { reason?: string; field?: string; requestId?: string; retryAfter?: number } = {},
  ) {
    super(message);
    this.name = 'ApiError';
    this.code = code;
    this.status = status;
    this.reason = more.reason;
    this.field = more.field;
    this.requestId = more.requestId;
    this.retryAfter = more.retryAfter;
  }

  /** Whether the same request may succeed later without anybody doing anything. */
  get isPassing(): boolean {
    return ['network', 'unavailable', 'vm_unreachable', 'full', 'internal'].includes(this.code);
  }
}

const BY_STATUS: Readonly<Record<number, Code>> = {
  400: 'bad_request',
  401: 'unauthorized',
  403: 'forbidden',
  404: 'not_found',
  405: 'method_not_allowed',
  409: 'conflict',
  410: 'gone',
  413: 'too_large',
  415: 'unsupported_media_type',
  422: 'invalid',
  429: 'full',
  500: 'internal',
  502: 'vm_unreachable',
  503: 'unavailable',
};

/** Reads an answer that is not a success. `body` is its text, whatever it may be. */
export function problemOf(status: number, body: string, requestId?: string | null): ApiError {
  let parsed: Record<string, unknown> = {};
  try {
    const value: unknown = JSON.parse(body);
    if (typeof value === 'object' && value !== null) parsed = value as Record<string, unknown>;
  } catch {
    // Not JSON: it comes from something between the server and the page.
  }
  const text = (key: string): string | undefined =>
    typeof parsed[key] === 'string' ? (parsed[key] as string) : undefined;
  const id = text('requestId') ?? requestId ?? undefined;
  const more = {
    ...(text('reason') !== undefined && { reason: text('reason') as string }),
    ...(text('field') !== undefined && { field: text('field') as string }),
    ...(id !== undefined && { requestId: id }),
    ...(typeof parsed['retryAfter'] === 'number' && { retryAfter: parsed['retryAfter'] }),
  };
  const code = (text('code') as Code | undefined) ?? BY_STATUS[status] ?? 'unknown';
  const message = text('error') ?? `The server answered with status ${status}.`;
  return new ApiError(code, status, message, more);
}

/** A request that got no answer. */
export function networkProblem(timedOut: boolean): ApiError {
  const message = timedOut
    ? 'The server did not answer in time.'
    : 'The server cannot be reached. Check your connection and that the server runs.';
  return new ApiError('network', 0, message);
}

/** Any thrown value as an `ApiError`. */
export function asApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error;
  return new ApiError('unknown', 0, error instanceof Error ? error.message : String(error));
}
