package sandbox

import (
	"crypto/rand"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// tokens that were given out and are valid.
type tokens struct {
	life time.Duration

	mu    sync.Mutex
	valid map[string]grant
}

type grant struct {
	expires time.Time
	scopes  []string
}

// issue gives out a token. Earlier ones stay valid.
func (t *tokens) issue(scopes []string) string {
	token := "sandbox." + rand.Text() + rand.Text()
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for old, g := range t.valid {
		if !now.Before(g.expires) {
			delete(t.valid, old)
		}
	}
	if t.valid == nil {
		t.valid = make(map[string]grant)
	}
	t.valid[token] = grant{expires: now.Add(t.life), scopes: scopes}
	return token
}

// check returns a token's scopes, and whether it is valid.
func (t *tokens) check(token string) ([]string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g, ok := t.valid[token]
	return g.scopes, ok && time.Now().Before(g.expires)
}

func (t *tokens) revoke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.valid)
}

// expiresIn is the life in whole seconds, never less than one.
func (t *tokens) expiresIn() int { return max(1, int(t.life/time.Second)) }

// oauthFailure is the body of RFC 6749, section 5.2. The vendors' pages show none.
func oauthFailure(status int, reason string) any {
	code := "invalid_request"
	if status == http.StatusUnauthorized {
		code = "invalid_client"
	}
	return map[string]any{"error": code, "error_description": reason}
}

// fanbaseToken takes the credentials from the query, and only from there. The texts are those of Fanbase's page of errors.
func (s *Server) fanbaseToken(r *request) answer {
	query := r.http.URL.Query()
	for _, name := range []string{"client_id", "client_secret", "grant_type"} {
		if query.Get(name) == "" {
			return r.refuse(http.StatusBadRequest, "The request is missing a parameter: (client_id, client_secret, grant_type, code)")
		}
	}
	switch {
	case query.Get("grant_type") != "client_credentials":
		return r.refuse(http.StatusBadRequest, "The grant_type is not client_credentials")
	case query.Get("client_id") != s.config.FanbaseClientID:
		return r.refuse(http.StatusUnauthorized, "The informed Client ID is invalid.")
	case query.Get("client_secret") != s.config.FanbaseClientSecret:
		return r.refuse(http.StatusUnauthorized, "The informed Client Secret does not match the correct secret.")
	}
	return answer{status: http.StatusOK, body: map[string]any{
		"access_token": s.fanbaseTokens.issue(nil), "token_type": "Bearer", "expires_in": s.fanbaseTokens.expiresIn(),
		"refresh_token": "sandbox." + rand.Text(),
		"scope":         "fbserver openid profile ownersecret fanaccount accountdeletion fanbaseaccountpermission fullaccountcheck setpwd",
	}}
}

// scopeOverride is what the accounts endpoint requires.
const scopeOverride = "tier_points:override"

// fanaticsToken is OAuth 2.0 client credentials, form-encoded. A scope that the client may not have is left out without a word.
func (s *Server) fanaticsToken(r *request) answer {
	form, err := parseForm(r)
	if err != nil {
		return r.refuse(http.StatusBadRequest, err.Error())
	}
	for _, name := range []string{"grant_type", "client_id", "client_secret"} {
		if form.Get(name) == "" {
			return r.refuse(http.StatusBadRequest, name+" is missing")
		}
	}
	switch {
	case form.Get("grant_type") != "client_credentials":
		return answer{status: http.StatusBadRequest, reason: "grant_type", body: map[string]any{"error": "unsupported_grant_type"}}
	case form.Get("client_id") != s.config.FanaticsClientID, form.Get("client_secret") != s.config.FanaticsClientSecret:
		return r.refuse(http.StatusUnauthorized, "unknown client")
	}
	var scopes []string
	for scope := range strings.FieldsSeq(form.Get("scope")) {
		if slices.Contains(s.config.FanaticsScopes, scope) {
			scopes = append(scopes, scope)
		}
	}
	return answer{status: http.StatusOK, body: map[string]any{
		"access_token": s.fanaticsTokens.issue(scopes), "token_type": "Bearer", "expires_in": s.fanaticsTokens.expiresIn(), "scope": strings.Join(scopes, " "),
	}}
}
