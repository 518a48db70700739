import { describe, expect, it } from 'vitest';
import {
  ago,
  bytes,
  clock,
  mib,
  roughly,
  seconds,
  sessionTitle,
  shortDigest,
  shortId,
  span,
} from './format';

const NOW = Date.parse('2026-01-05T10:00:00Z');

describe('spans', () => {
  it('have one or two units', () => {
    expect([0, 4_400, 59_000, 60_000, 200_000, 1_500_000].map(span)).toEqual([
      '0 s',
      '4 s',
      '59 s',
      '1 min',
      '3 min 20 s',
      '25 min',
    ]);
    expect([7_200_000, 7_500_000, 86_400_000, 260_000_000].map(span)).toEqual([
      '2 h',
      '2 h 5 min',
      '1 day',
      '3 days',
    ]);
    expect(span(-5)).toBe('0 s');
  });

  it('are rough where that is enough', () => {
    expect([59_999, 119_000, 7_199_000, 172_800_000].map(roughly)).toEqual([
      '59 s',
      '1 min',
      '1 h',
      '2 days',
    ]);
    expect(ago(NOW - 1000, NOW)).toBe('just now');
    expect(ago(new Date(NOW - 180_000).toISOString(), NOW)).toBe('3 min ago');
    // A clock that is behind the server's shows no negative times.
    expect(ago(NOW + 60_000, NOW)).toBe('just now');
  });

  it('are measured with one decimal', () => {
    expect([0, 449, 12_345, 61_000].map(seconds)).toEqual([
      '0.0 s',
      '0.4 s',
      '12.3 s',
      '1 min 1 s',
    ]);
  });
});

describe('amounts', () => {
  it('are binary', () => {
    expect([512, 1024, 2048, 2560].map(mib)).toEqual(['512 MiB', '1 GiB', '2 GiB', '2.5 GiB']);
    expect([7, 1536, 5 << 20].map(bytes)).toEqual(['7 B', '1.5 KiB', '5.0 MiB']);
  });
});

describe('names', () => {
  it('are short and tell sessions apart', () => {
    const id = '0198b1c2-0000-7000-8000-0123456789ab';
    expect(shortId(id)).toBe('456789ab');
    expect(sessionTitle({ id, name: '  ' })).toBe('Session 456789ab');
    expect(sessionTitle({ id, name: 'Bank' })).toBe('Bank');
    expect(shortDigest('sha256:' + 'ab'.repeat(32))).toBe('sha256:abababababab');
    expect(shortDigest('ab'.repeat(32))).toBe('abababababab');
  });

  it('give the date only for another day', () => {
    expect(clock('2026-01-05T10:00:00Z', NOW, 'en-GB')).toMatch(/^\d\d:\d\d:\d\d$/);
    expect(clock('2025-12-24T10:00:00Z', NOW, 'en-GB')).toMatch(/^24 Dec, /);
  });
});
