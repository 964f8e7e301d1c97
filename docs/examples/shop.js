/**
 * A shop: somebody signs in, buys at a price, pays, comes back from their bank, and tries again after a refusal.
 *
 * Three rules keep anybody from paying twice:
 * - Each purchase has one Idempotency-Key, stored before the first request, and every repetition sends the same one.
 * - Each order has one `reference`. If there is a payment of that order already, that payment is continued.
 * - What became of a payment is asked of the API, and read neither from the address nor from what confirming said.
 *   Goods are handed out by the server that hears of `succeeded`, never by a browser.
 */

const API = document.querySelector("meta[name=api]").content;
const PATIENCE = 30_000; // milliseconds for one request; the API itself waits for the provider up to 23 seconds
const TRIES = 4;
const LONGEST_WAIT = 15; // seconds; whoever has to wait longer is told so
const POLLS = [1, 2, 4, 8, 15, 30]; // seconds between looks at a payment: a minute in all

// --- What this tab remembers, over reloads and on the way to the bank and back ---------------------------------------

const remembered = (name) => ({
  read: () => JSON.parse(sessionStorage.getItem(name)),
  write(value) {
    sessionStorage.setItem(name, JSON.stringify(value));
    return value;
  },
  forget: () => sessionStorage.removeItem(name),
});

/** The access token. It ends after ten minutes; a real client renews it with the refresh token, as the guide says. */
const access = remembered("access");
/** { key, body } of what is bought, and the `id` of its payment as soon as that is known. */
const purchase = remembered("purchase");

// --- The API ----------------------------------------------------------------------------------------------------------

/** What the API refused, or a request that has no answer (`status` 0). Switch on `code`. */
class ApiError extends Error {
  constructor({ status = 0, code = "no_answer", detail, ...problem }, retryAfter = null) {
    super(problem.errors?.[0]?.detail ?? detail ?? "The shop cannot be reached right now.");
    Object.assign(this, problem, { status, code, retryAfter });
  }

  /** Whether the same request may well succeed later. Nothing is known of what it did. */
  get passes() {
    const isAway = this.status === 0 || (this.status >= 500 && this.code === "no_answer");
    return isAway || [429, 503].includes(this.status) || this.code === "idempotency_in_progress";
  }
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function send(method, path, { body, key } = {}) {
  const headers = new Headers();
  if (access.read()) headers.set("Authorization", `Bearer ${access.read()}`);
  if (key) headers.set("Idempotency-Key", key);
  if (body) headers.set("Content-Type", "application/json");
  let response;
  try {
    const signal = AbortSignal.timeout(PATIENCE);
    response = await fetch(API + path, { method, headers, body: body && JSON.stringify(body), signal });
    const isJson = /[/+]json/.test(response.headers.get("Content-Type"));
    const answer = isJson ? await response.json() : { status: response.status };
    if (response.ok) return answer.data;
    const seconds = response.headers.get("Retry-After");
    throw new ApiError(answer, seconds && Number(seconds));
  } catch (error) {
    throw error instanceof ApiError ? error : new ApiError({});
  }
}

/** Send a request; where sending it twice does no harm, send it again as long as it fails for a reason that passes. */
async function call(method, path, options = {}) {
  const isRepeatable = method === "GET" || options.key;
  for (let tries = 1; ; tries += 1) {
    try {
      return await send(method, path, options);
    } catch (error) {
      const wait = error.retryAfter ?? tries;
      if (!isRepeatable || !error.passes || tries === TRIES || wait > LONGEST_WAIT) throw error;
      await pause(wait);
    }
  }
}

// --- Providers: each shows its fields in `place`, and returns how to confirm ------------------------------------------
// Confirming gives what to tell the customer, or nothing. It does not come back from where the customer is sent away.

const providers = {
  async sandbox(place, { clientSecret }) {
    const methods = await call("GET", "/v1/sandbox/payment-methods");
    place.replaceChildren(document.querySelector("template#sandbox").content.cloneNode(true));
    const select = place.querySelector("select");
    select.append(...methods.map(({ name }) => new Option(name)));
    const describe = () => {
      place.querySelector("p").textContent = methods[select.selectedIndex].description;
    };
    select.addEventListener("change", describe);
    describe();

    return async (return_url) => {
      const [intent] = clientSecret.split("_secret_");
      const body = { client_secret: clientSecret, payment_method: select.value, return_url };
      try {
        const { next_action } = await call("POST", `/v1/sandbox/payment-intents/${intent}/confirm`, { body });
        return next_action ? leaveFor(next_action.redirect_to_url.url) : null;
      } catch (error) {
        if (error.code === "payment_declined") return error.message;
        throw error;
      }
    };
  },

  async stripe(place, { clientSecret, publishableKey }) {
    await loadScript("https://js.stripe.com/v3/");
    const stripe = globalThis.Stripe(publishableKey);
    const elements = stripe.elements({ clientSecret });
    place.replaceChildren();
    elements.create("payment").mount(place);

    return async (return_url) => {
      const confirmParams = { return_url };
      const { error } = await stripe.confirmPayment({ elements, confirmParams, redirect: "if_required" });
      if (!error) return null;
      const isForTheCustomer = ["card_error", "validation_error"].includes(error.type);
      return isForTheCustomer ? error.message : "The payment could not be made. Try again, or pay in another way.";
    };
  },
};

function leaveFor(url) {
  location.assign(url);
  return new Promise(() => {}); // the page is about to go: nothing is to happen meanwhile
}

function loadScript(src) {
  if (document.querySelector(`script[src="${src}"]`)) return Promise.resolve();
  return new Promise((resolve, reject) => {
    const onerror = () => reject(new ApiError({}));
    document.head.append(Object.assign(document.createElement("script"), { src, onload: resolve, onerror }));
  });
}

// --- Money: integers of the minor unit. Nothing is divided, and the digits are those of ISO 4217, not the browser's. --

const NO_DIGITS = "BIF CLP DJF GNF JPY KMF KRW PYG RWF VND VUV XAF XOF XPF".split(" ");
const THREE_DIGITS = "BHD JOD KWD OMR TND".split(" ");

function digitsOf(currency) {
  if (NO_DIGITS.includes(currency)) return 0;
  return THREE_DIGITS.includes(currency) ? 3 : 2;
}

function display(amount, currency) {
  const digits = digitsOf(currency);
  const text = String(amount).padStart(digits + 1, "0");
  const number = digits ? `${text.slice(0, -digits)}.${text.slice(-digits)}` : text;
  const style = { style: "currency", currency, minimumFractionDigits: digits, maximumFractionDigits: digits };
  return new Intl.NumberFormat(undefined, style).format(number);
}

/** Return an amount that somebody typed, such as 12.5, in the minor unit; null if it is none. */
function parse(text, currency) {
  const digits = digitsOf(currency);
  const [, whole, , minor = ""] = /^(\d{1,12})([.,](\d+))?$/.exec(text.trim()) ?? [];
  return whole === undefined || minor.length > digits ? null : Number(whole + minor.padEnd(digits, "0"));
}

// --- The page ---------------------------------------------------------------------------------------------------------

const $ = (selector) => document.querySelector(selector);
let config;
let prices;
let confirmShown; // confirms the payment that is shown
let isBusy = false;

function show(name) {
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  $("#sign-out").hidden = name === "sign-in";
  $("#retry").hidden = true;
  $(`#${name} h1`).focus({ preventScroll: true });
}

function tell(message) {
  $("#alert").textContent = message ?? "";
  $("#alert").hidden = !message;
  if (message) $("#alert").scrollIntoView({ block: "nearest" });
}

/** Do one thing at a time: what is clicked meanwhile, or a second time, counts for nothing. */
async function alone(work) {
  if (isBusy) return;
  setBusy(true);
  tell(null);
  try {
    await work();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401 && access.read()) signOut("Sign in again to go on.");
    else tell(error.message);
    // Nothing could be shown yet.
    $("#retry").hidden = $("main > section:not([hidden])") !== null;
  } finally {
    setBusy(false);
  }
}

function setBusy(value) {
  isBusy = value;
  $("#busy").hidden = !value;
  for (const fieldset of document.querySelectorAll("fieldset")) fieldset.disabled = value;
}

/** Show what is to be done next: after loading the page, after signing in, and after coming back from the bank. */
async function start() {
  if (!access.read()) return show("sign-in");
  [config, prices] = await Promise.all([call("GET", "/v1/payments/config"), call("GET", "/v1/prices?limit=100")]);
  $("#mode").hidden = config.livemode;
  const started = purchase.read();
  if (!started) return showShop();
  if (started.id) return follow(started.id);
  // The answer to the first request was lost. The same key finds out what that request did.
  showShop(started.body);
  return create(started);
}

async function signIn({ email, password }) {
  const body = { email: email.value, password: password.value };
  access.write((await call("POST", "/v1/auth/login", { body })).access_token);
  password.value = "";
  await start();
}

function signOut(message) {
  access.forget();
  show("sign-in");
  tell(message);
}

function showShop({ price_id, reference } = {}) {
  $("#shop form").reset();
  $("#prices").replaceChildren(...prices.map(priceItem));
  if (prices.length === 0) $("#prices").textContent = "There is nothing to buy yet.";
  const { elements } = $("#shop form");
  elements.reference.value = reference ?? `order-${crypto.randomUUID().slice(0, 8)}`;
  const chosen = document.querySelector(`#prices input[value="${price_id}"]`);
  if (chosen) chosen.checked = true;
  showAmount();
  show("shop");
}

function priceItem({ id, name, description, currency, unit_amount }) {
  const item = $("template#price").content.cloneNode(true);
  item.querySelector("input").value = id;
  item.querySelector("strong").textContent = name;
  item.querySelector(".quiet").textContent = description ?? "";
  item.querySelector(".sum").textContent = unit_amount === null ? "as you like" : display(unit_amount, currency);
  return item;
}

function chosenPrice() {
  const chosen = $("#prices input:checked");
  return prices.find(({ id }) => id === chosen?.value);
}

/** Ask for an amount where the price has bounds instead of one. */
function showAmount() {
  const price = chosenPrice();
  const isOpen = price?.unit_amount === null;
  $("#amount").hidden = !isOpen;
  $("#amount input").required = isOpen;
  if (!isOpen) return;
  const [least, most] = [price.min_amount, price.max_amount].map((amount) => display(amount, price.currency));
  $("#amount .quiet").textContent = `${least} to ${most}`;
}

async function buy({ reference, amount }) {
  const price = chosenPrice();
  const body = { price_id: price.id, reference: reference.value };
  if (price.unit_amount === null) {
    body.amount = parse(amount.value, price.currency);
    if (body.amount === null) return tell("Type an amount, such as 12.50.");
  }
  const last = purchase.read();
  const isRepeated = JSON.stringify(last?.body) === JSON.stringify(body);
  // Stored before it is sent: if the answer is lost, even with the page, the key is still there.
  return create(isRepeated ? last : purchase.write({ key: crypto.randomUUID(), body }));
}

async function create({ key, body }) {
  try {
    const payment = await call("POST", "/v1/payments", { key, body });
    purchase.write({ key, body, id: payment.id });
    return await showCheckout(payment, payment.client_secret);
  } catch (error) {
    if (error.code === "payment_exists") {
      // This order has a payment, made with another key, perhaps in another tab: go on with that one.
      return follow(purchase.write({ key, body, id: error.payment_id }).id);
    }
    // A refusal is an answer, and what is bought next is another purchase. Without an answer the key is kept.
    if (!error.passes && !purchase.read().id) purchase.forget();
    throw error;
  }
}

/** Show what became of a payment. The provider is asked first, since its webhooks may be late. */
async function follow(id) {
  let payment;
  try {
    payment = await call("GET", `/v1/payments/${id}?sync=true`);
  } catch (error) {
    if (error.status === 404) purchase.forget(); // it was somebody else's
    throw error;
  }
  await showPayment(payment);
  if (payment.status === "processing") void watch(id);
}

/** Look again from time to time while the bank has not answered. */
async function watch(id) {
  for (const seconds of POLLS) {
    await pause(seconds);
    if (isBusy || purchase.read()?.id !== id || $("#result").hidden) return;
    const payment = await call("GET", `/v1/payments/${id}`).catch(() => null);
    if (payment && payment.status !== "processing") return alone(() => showPayment(payment));
  }
}

const ENDS = {
  succeeded: ["Paid", ({ receipt_number }) => `Thank you! Your receipt is ${receipt_number}.`],
  requires_capture: ["Reserved", () => "Thank you! The money is taken when your order is on its way."],
  processing: ["On its way", () => "Your bank is working on it. We tell you as soon as it is done."],
  canceled: ["Canceled", () => "Nothing was paid."],
  failed: ["Not possible", () => "The payment could not be made. Nothing was paid."],
};

async function showPayment(payment) {
  const end = ENDS[payment.status];
  if (payment.pending_operation === "cancel") return showResult(payment, "Being canceled", "This takes a moment.");
  if (end) return showResult(payment, end[0], end[1](payment));
  await showCheckout(payment);
  if (payment.status === "requires_action") tell("Your bank has not heard from you. Pay again to go on.");
  else if (payment.failure) tell(payment.failure.message ?? "The payment failed. Try again, or pay in another way.");
}

function showResult(payment, heading, told) {
  showSum(payment);
  $("#result h1").textContent = heading;
  $("#told").textContent = told;
  $("#again").hidden = payment.status !== "processing" && !payment.pending_operation;
  show("result");
}

/** Show the fields to pay with. The secret is asked for whenever it is needed, and stored nowhere. */
async function showCheckout(payment, secret) {
  const clientSecret = secret ?? (await call("GET", `/v1/payments/${payment.id}/client-secret`)).client_secret;
  const { provider, publishable_key: publishableKey } = config;
  confirmShown = await providers[provider]($("#method"), { clientSecret, publishableKey });
  showSum(payment);
  show("checkout");
}

function showSum({ amount, currency, description }) {
  for (const place of document.querySelectorAll("section .sum:not(#prices *)")) {
    place.textContent = display(amount, currency);
  }
  for (const place of document.querySelectorAll(".what")) place.textContent = description ?? "";
}

async function pay() {
  const { id } = purchase.read();
  let message;
  try {
    message = await confirmShown(location.origin + location.pathname);
  } catch (error) {
    // Perhaps it was paid: by a request whose answer was lost, or in another tab.
    if (!error.passes && error.code !== "invalid_state") throw error;
    message = error.message;
    await follow(id);
    return tell($("#checkout").hidden ? null : message);
  }
  // After a refusal the same payment is tried again.
  return message ? tell(message) : follow(id);
}

async function cancel() {
  const { id, key } = purchase.read();
  try {
    await call("POST", `/v1/payments/${id}/cancel`, { key: `${key}-cancel`, body: {} });
  } catch (error) {
    if (error.code !== "invalid_state") throw error; // else it was paid meanwhile
  }
  await follow(id);
}

function onSubmit(name, work) {
  $(`#${name} form`).addEventListener("submit", (event) => {
    event.preventDefault();
    void alone(() => work(event.target.elements));
  });
}

onSubmit("sign-in", signIn);
onSubmit("shop", buy);
onSubmit("checkout", pay);
onSubmit("result", () => {
  purchase.forget();
  showShop();
});
$("#prices").addEventListener("change", showAmount);
$("#cancel").addEventListener("click", () => alone(cancel));
$("#again").addEventListener("click", () => alone(() => follow(purchase.read().id)));
$("#retry").addEventListener("click", () => alone(start));
$("#sign-out").addEventListener("click", () => {
  purchase.forget();
  signOut();
});

// Who comes back from a bank brings the payment's secret and `redirect_status`. Neither is needed: we ask the API.
if (location.search) history.replaceState(null, "", location.pathname);
// With "Back" a browser may show the page as it was left, in the middle of paying.
addEventListener("pageshow", ({ persisted }) => persisted && location.reload());

await alone(start);
