import { describe, expect, it } from 'vitest';
import { wasAway } from './serverReturn';

describe('looking for the server', () => {
  const answers = (...list: boolean[]) => {
    let pauses = 0;
    const away = wasAway(
      () => Promise.resolve(list.shift() ?? true),
      () => Promise.resolve(void (pauses += 1)),
    );
    return away.then((was) => [was, pauses]);
  };

  it('says that it was away once it is back', async () => {
    expect(await answers(false, false, true)).toEqual([true, 2]);
  });

  it('says nothing of a server that was there all the time', async () => {
    expect(await answers(true)).toEqual([false, 0]);
  });
});
