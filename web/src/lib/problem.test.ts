import { describe, expect, it } from 'vitest';
import { ApiError, asApiError, networkProblem, problemOf } from './problem';

describe('problems', () => {
  it('carry what the server said', () => {
    const body = {
      code: 'invalid',
      status: 422,
      error: 'A screen is 320 to 7680 pixels wide.',
      field: 'screen.width',
    };
    const error = problemOf(422, JSON.stringify(body), 'abc');
    expect(error).toMatchObject({
      code: 'invalid',
      status: 422,
      message: body.error,
      field: 'screen.width',
      requestId: 'abc',
    });
    expect(error.isPassing).toBe(false);
  });

  it('say when to try again and why something is gone', () => {
    const full = problemOf(429, '{"code":"full","status":429,"error":"Full.","retryAfter":10}');
    expect(full.retryAfter).toBe(10);
    expect(full.isPassing).toBe(true);
    const gone = problemOf(410, '{"code":"gone","status":410,"error":"x","reason":"idle"}');
    expect(gone.reason).toBe('idle');
  });

  it('make sense of what a proxy says', () => {
    const error = problemOf(502, '<html>Bad gateway</html>');
    expect(error.code).toBe('vm_unreachable');
    expect(error.message).toContain('502');
    expect(problemOf(418, '"teapot"').code).toBe('unknown');
    expect(problemOf(500, 'null').code).toBe('internal');
  });

  it('tell a lost connection from an answer', () => {
    expect(networkProblem(false)).toMatchObject({ code: 'network', status: 0, isPassing: true });
    expect(networkProblem(true).message).toContain('in time');
    expect(asApiError(new Error('x'))).toBeInstanceOf(ApiError);
    const same = networkProblem(true);
    expect(asApiError(same)).toBe(same);
  });
});
