/** A person's way through the dashboard: sign in, make a session, use it, come back, end it. */

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import {
  START_MS,
  call,
  cleanUp,
  coloursOf,
  desktopIsLive,
  enterTerminal,
  inGuest,
  isSimulated,
  newSession,
  openBrowser,
  picture,
  sessionOf,
  signIn,
  terminalText,
  token,
  until,
  url,
} from './harness.js';

const NAME = `e2e ${process.pid}`;

describe('the dashboard', { timeout: 4 * START_MS }, () => {
  let browser;
  let page;
  let id;

  before(async () => {
    browser = await openBrowser();
    page = browser.page;
  });

  after(async () => {
    await browser?.close();
    await cleanUp();
  });

  it('asks for an access token and refuses a wrong one', async () => {
    await page.goto(url);
    const form = page.getByRole('dialog', { name: 'Sign in to Holdfast' });
    await form.waitFor();
    await form.getByLabel('Access token').fill('hf_wrong');
    await form.getByRole('button', { name: 'Sign in' }).click();
    await form.getByRole('alert').filter({ hasText: 'not valid' }).waitFor();
    await page.keyboard.press('Escape');
    assert.equal(await form.isVisible(), true, 'Escape does not get around the form');
    await form.getByLabel('Access token').fill(token);
    await form.getByRole('button', { name: 'Sign in' }).click();
    await form.waitFor({ state: 'detached' });
    await page.getByRole('button', { name: 'New session' }).first().waitFor();
  });

  it('keeps the token out of the address', async () => {
    await signIn(page);
    assert.equal(page.url(), `${url}/`);
  });

  it('shows an error at its field', async () => {
    await page.getByRole('button', { name: 'New session' }).first().click();
    const dialog = page.getByRole('dialog', { name: 'New session' });
    await dialog.getByText('More settings').click();
    await dialog.getByLabel('Memory in MiB').fill('7');
    await dialog.getByRole('button', { name: 'Start session' }).click();
    const field = dialog.locator('#memoryMib[aria-invalid="true"]');
    await field.waitFor();
    const error = dialog.locator(`#${await field.getAttribute('aria-describedby')}`);
    assert.match(await error.textContent(), /1024/);
    await picture(page, 'new session');
    await page.keyboard.press('Escape');
    await dialog.waitFor({ state: 'detached' });
  });

  it('makes a session and shows the steps of its start as they happen', async () => {
    // Of this size there is no warm image: a clone is there before anybody sees a step, as a simulated
    // machine is.
    id = await newSession(page, NAME, { memoryMib: 1536 });
    assert.ok(id);
    const steps = page.locator('[data-step]');
    const live = page.locator('.stage[data-live="true"]');
    await steps.first().or(live).first().waitFor();
    if (!(await isSimulated())) {
      await page
        .locator('[data-step="step.start"][data-status="done"]')
        .waitFor({ timeout: START_MS });
    }
    await desktopIsLive(page);
    assert.equal(sessionOf(page), id);
    await page.locator('[data-state="ready"]').waitFor();
  });

  it('shows the picture of a real machine', async (t) => {
    if (await isSimulated()) return t.skip('simulated machines have no browser');
    await until(async () => (await coloursOf(page)) > 3, 'a picture of several colours', START_MS);
  });

  it('types into the terminal on the desktop’s picture', async (t) => {
    if (await isSimulated()) return t.skip('simulated machines have no terminal on their desktop');
    await enterTerminal(page);
    await page.keyboard.type('touch ~/via-canvas');
    await page.keyboard.press('Enter');
    await until(
      async () => (await inGuest(id, 'test -e ~/via-canvas')).code === 0,
      'the effect of the command in the machine',
      START_MS,
    );
  });

  it('lists every step in the timeline', async () => {
    await page.getByRole('tab', { name: 'Timeline' }).click();
    const timeline = page.getByRole('region', { name: 'Timeline' });
    await picture(page, 'timeline');
    for (const kind of ['step.disk', 'step.network', 'step.start', 'step.desktop']) {
      await timeline.getByText(kind, { exact: true }).first().waitFor();
    }
    assert.match(page.url(), /view=timeline/);
    await page.getByRole('tab', { name: 'Details' }).click();
    await page.getByText(id, { exact: true }).first().waitFor();
    await page.getByRole('tab', { name: 'Desktop' }).click();
  });

  it('comes back after each of twenty refreshes', async () => {
    const { vmId } = (await call('GET', `/api/sessions/${id}/vm`)).body;
    for (let refresh = 0; refresh < 20; refresh += 1) {
      await page.reload();
      await desktopIsLive(page);
      assert.equal(sessionOf(page), id);
    }
    assert.equal((await call('GET', `/api/sessions/${id}/vm`)).body.vmId, vmId);
  });

  it('goes to the list and back with the browser’s buttons', async () => {
    await page.goto(`${url}/`);
    const card = page.locator(`[data-session="${id}"]`);
    await card.getByRole('link', { name: NAME }).click();
    await desktopIsLive(page);
    await page.goBack();
    await card.waitFor();
    await page.goForward();
    await desktopIsLive(page);
  });

  it('shows the same session in a second tab', async () => {
    const second = await browser.context.newPage();
    await second.goto(page.url());
    await desktopIsLive(second);
    await page.bringToFront();
    assert.equal(await page.locator('.stage[data-live="true"]').count(), 1);
    await second.close();
  });

  it('types into the terminal, and finds it as it was after a refresh', async () => {
    await page.getByRole('tab', { name: 'Terminal' }).click();
    await page.locator('.terminal[data-ready="true"]').waitFor();
    await page.locator('.xterm-helper-textarea').focus();
    const simulated = await isSimulated();
    await page.keyboard.type('echo holdfast-$((6*7))');
    await page.keyboard.press('Enter');
    const expected = simulated ? 'holdfast-' : 'holdfast-42';
    await until(
      async () => (await terminalText(page)).includes(expected),
      `${expected} on the screen`,
    );
    await page.reload();
    await page.locator('.terminal[data-ready="true"]').waitFor();
    await until(async () => (await terminalText(page)).includes(expected), 'the scrollback');
    await page.getByRole('tab', { name: 'Desktop' }).click();
    await desktopIsLive(page);
  });

  it('asks again when the sign-in is lost, and goes on after it', async () => {
    await page.goto(`${url}/?session=${id}`);
    await desktopIsLive(page);
    await browser.context.clearCookies();
    // The next heartbeat finds out.
    const form = page.getByRole('dialog', { name: 'Sign in to Holdfast' });
    await form.waitFor();
    await form.getByLabel('Access token').fill(token);
    await page.keyboard.press('Enter');
    await form.waitFor({ state: 'detached' });
    await desktopIsLive(page);
    assert.equal(sessionOf(page), id);
  });

  it('ends a session only after a confirmation, and explains the end', async () => {
    await page.getByRole('button', { name: 'End session' }).click();
    const dialog = page.getByRole('dialog', { name: `End ${NAME}?` });
    await dialog.waitFor();
    await page.keyboard.press('Escape');
    await dialog.waitFor({ state: 'detached' });
    assert.equal((await call('GET', `/api/sessions/${id}`)).status, 200);
    await page.getByRole('button', { name: 'End session' }).click();
    await dialog.getByRole('button', { name: 'End session' }).click();
    await page.getByRole('heading', { name: 'This session has ended' }).waitFor();
    await page.getByText('It was ended on request').waitFor();
    await picture(page, 'ended');
    assert.equal((await call('GET', `/api/sessions/${id}`)).status, 410);
    await page.reload();
    await page.getByRole('heading', { name: 'This session has ended' }).waitFor();
  });

  it('offers the same session again', async () => {
    await page.getByRole('button', { name: 'New session like this one' }).click();
    const dialog = page.getByRole('dialog', { name: 'New session' });
    assert.equal(await dialog.getByLabel('Name').inputValue(), NAME);
    await page.keyboard.press('Escape');
  });

  it('says that a session never existed', async () => {
    await page.goto(`${url}/?session=0198b1c2-0000-7000-8000-000000000000`);
    await page.getByRole('heading', { name: 'There is no such session' }).waitFor();
  });

  it('had no uncaught error', () => {
    assert.deepEqual(browser.errors, []);
  });
});
