// Starts Swagger UI. The tokens that signing in returns are used from then on, and forgotten when they end;
// they are kept in this page's memory and nowhere else.
"use strict";

const SIGNS_IN = ["/v1/auth/login", "/v1/auth/refresh"];
const SIGNS_OUT = ["/v1/auth/logout", "/v1/users/me/erase"];
const SESSION_IS_OVER = ["session_revoked", "token_reused"];

const container = document.getElementById("swagger-ui");
const session = document.getElementById("session");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
let email = "";

function followColourScheme() {
  document.documentElement.classList.toggle("dark-mode", dark.matches);
}

function keepTokens({ data }) {
  email = data.user.email;
  ui.preauthorizeApiKey("access", data.access_token);
  ui.preauthorizeApiKey("refresh", data.refresh_token);
}

function forgetTokens() {
  email = "";
  ui.authActions.logout(["access", "refresh"]);
}

function followSession(response) {
  const path = new URL(response.url, window.location.href).pathname;
  if (response.ok && SIGNS_IN.includes(path)) {
    keepTokens(response.body);
  } else if (response.ok && SIGNS_OUT.includes(path)) {
    forgetTokens();
  } else if (response.status === 401 && SESSION_IS_OVER.includes(response.body?.code)) {
    forgetTokens();
  }
  return response;
}

// Tokens may also be typed in or removed in the dialog, so the line shows what Swagger UI would send.
function showState() {
  const usesToken = ui.authSelectors.authorized().has("access");
  session.hidden = !usesToken;
  session.textContent = email ? `Signed in as ${email}` : "Using the token you entered";
}

followColourScheme();
dark.addEventListener("change", followColourScheme);

const ui = SwaggerUIBundle({
  domNode: container,
  url: container.dataset.document,
  presets: [SwaggerUIBundle.presets.apis],
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  filter: true,
  persistAuthorization: false,
  responseInterceptor: followSession,
  validatorUrl: null,
});
ui.getStore().subscribe(showState);
