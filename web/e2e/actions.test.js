/** What can be done to a session besides using it: share, put to sleep, wake up, copy. */

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import {
  START_MS,
  call,
  cleanUp,
  desktopIsLive,
  isSimulated,
  newSession,
  openBrowser,
  picture,
  sessionOf,
  signIn,
  terminalText,
  until,
  url,
} from './harness.js';

describe('the actions of a session', { timeout: 5 * START_MS }, () => {
  let browser;
  let page;
  let id;
  /** Browsers of people with a link; an open one keeps this process alive. */
  const guests = [];

  before(async () => {
    browser = await openBrowser();
    page = browser.page;
    await signIn(page);
    id = await newSession(page, `e2e actions ${process.pid}`);
    await desktopIsLive(page);
  });

  after(async () => {
    for (const guest of [...guests, browser]) await guest?.close();
    await cleanUp();
  });

  async function more(name) {
    await page.getByRole('button', { name: 'More actions' }).click();
    await page.getByRole('button', { name }).click();
  }

  /** Makes a share link by clicking, and opens it as somebody without an access token. */
  async function shared(choice) {
    await more('Share this desktop');
    const dialog = page.getByRole('dialog', { name: 'Share this desktop' });
    await dialog.getByRole('radio', { name: choice, exact: true }).check();
    await dialog.getByRole('button', { name: 'Make a link' }).click();
    const link = await dialog.getByLabel('Link', { exact: true }).inputValue();
    await picture(page, `a link to ${choice}`);
    await dialog.getByRole('button', { name: 'Done' }).click();
    const guest = await openBrowser();
    guests.push(guest);
    const typed = [];
    guest.page.on('websocket', (socket) =>
      socket.on('framesent', ({ payload }) => {
        // A key event of RFB, or one with its place on the keyboard, which Xvnc takes.
        if (typeof payload !== 'string' && [4, 255].includes(payload[0])) typed.push(payload);
      }),
    );
    await guest.page.goto(link);
    const canvas = guest.page.locator('main canvas');
    await until(
      () =>
        canvas.evaluate(
          (c) => c.width > 300 && c.getContext('2d').getImageData(9, 9, 1, 1).data[3],
        ),
      'a picture for the guest',
    );
    assert.equal(new URL(guest.page.url()).searchParams.get('share'), null, 'the secret is hidden');
    await canvas.click();
    await guest.page.keyboard.type('x');
    return { guest, typed };
  }

  it('shows what the machine costs, here and in the list', async () => {
    const known = (await call('GET', `/api/sessions/${id}/vm?usage=true`)).body;
    assert.ok(known.memoryMib > 0 && known.diskMib >= 0 && known.cpuMs >= 0, JSON.stringify(known));
    await page.locator('header .usage.tabular', { hasText: /[MG]iB memory/ }).waitFor();
    await page.goto(url);
    const card = page.locator(`[data-session="${id}"]`);
    await card.getByText(/iB memory/).waitFor();
    await picture(page, 'the list');
    await card.getByRole('link').click();
    await desktopIsLive(page);
  });

  it('shares a desktop to watch, and one to use', async () => {
    const watch = await shared('watch');
    await watch.guest.page.locator('main[data-view-only="true"]').waitFor();
    assert.deepEqual(watch.typed, [], 'a viewer’s keys stay with the viewer');
    const use = await shared('watch, type and click');
    await until(() => use.typed.length >= 2, 'keys of the guest');
    assert.deepEqual(use.guest.errors, []);
  });

  it('puts a machine to sleep and wakes it up as it was', async (t) => {
    await page.getByRole('tab', { name: 'Terminal' }).click();
    await page.locator('.terminal[data-ready="true"]').waitFor();
    await page.locator('.xterm-helper-textarea').focus();
    await page.keyboard.type('echo asleep-$((6*7))');
    await page.keyboard.press('Enter');
    const simulated = await isSimulated();
    const mark = simulated ? 'asleep-' : 'asleep-42';
    await until(async () => (await terminalText(page)).includes(mark), mark);
    await page.getByRole('tab', { name: 'Desktop' }).click();

    await more('Put to sleep');
    const dialog = page.getByRole('dialog', { name: 'Put this machine to sleep?' });
    await dialog.getByRole('button', { name: 'Put to sleep' }).click();
    await dialog.waitFor({ state: 'detached' });
    await page
      .getByRole('heading', { name: 'This machine is asleep' })
      .waitFor({ timeout: START_MS });
    await picture(page, 'asleep');
    assert.equal((await call('GET', `/api/sessions/${id}`)).body.state, 'hibernated');
    await page.reload();
    await page.getByRole('heading', { name: 'This machine is asleep' }).waitFor();

    await page.getByRole('button', { name: 'Wake up' }).click();
    await page.locator('[data-state="ready"]').waitFor({ timeout: START_MS });
    await desktopIsLive(page);
    await page.getByRole('tab', { name: 'Terminal' }).click();
    if (simulated) return t.diagnostic('simulated shells do not outlive their sleep');
    await until(async () => (await terminalText(page)).includes(mark), 'the shell of before');
    await page.getByRole('tab', { name: 'Desktop' }).click();
  });

  it('copies a machine: another session, which lives on its own', async () => {
    await page.getByRole('tab', { name: 'Desktop' }).click();
    await more('Copy this machine');
    await page.waitForURL((now) => ![null, id].includes(now.searchParams.get('session')));
    const copy = sessionOf(page);
    await page.locator('[data-state="ready"]').waitFor({ timeout: START_MS });
    await desktopIsLive(page);
    await picture(page, 'a copy');
    assert.notEqual(copy, id);
    await call('DELETE', `/api/sessions/${id}`);
    await page.reload();
    await desktopIsLive(page);
    assert.equal((await call('GET', `/api/sessions/${copy}`)).body.state, 'ready');
  });

  it('had no uncaught error', () => {
    assert.deepEqual(browser.errors, []);
  });
});
