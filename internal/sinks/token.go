package sinks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Tokens holds the access tokens of a daemon: one for each client, shared by all sinks and lanes that use it, since a vendor
// may revoke the old token when it issues a new one. It is safe for concurrent use.
type Tokens struct {
	agent     string
	transport http.RoundTripper
	metrics   *metrics

	mu      sync.Mutex
	sources map[tokenClient]*tokenSource
}

// NewTokens makes no request. A nil transport means connections of its own.
func NewTokens(version string, reg prometheus.Registerer, transport http.RoundTripper) *Tokens {
	if transport == nil {
		transport = newConnections(1)
	}
	return &Tokens{agent: userAgent(version), transport: transport, metrics: newMetrics(reg), sources: map[tokenClient]*tokenSource{}}
}

// Close ends the idle connections.
func (t *Tokens) Close() { closeIdle(t.transport) }

// grant says how a client asks for its token.
type grant uint8

const (
	grantQuery grant = iota + 1 // Fanbase: everything in the query, no body
	grantForm                   // OAuth 2.0 (RFC 6749, 4.4)
)

// tokenClient is who asks for a token. The secret is part of it: with two secrets for one client, one of them is wrong, and
// its sink should be the one to say so.
type tokenClient struct {
	grant                  grant
	url, id, secret, scope string
}

func (t *Tokens) source(g grant, auth Auth) (*tokenSource, error) {
	if _, err := parseURL(auth.URL); err != nil {
		return nil, fmt.Errorf("auth.url: %w", err)
	}
	client := tokenClient{g, auth.URL, auth.ClientID, auth.ClientSecret.Reveal(), auth.Scope}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sources[client] == nil {
		t.sources[client] = &tokenSource{tokens: t, client: client}
	}
	return t.sources[client], nil
}

// tokenSource is the token of one client.
type tokenSource struct {
	tokens *Tokens
	client tokenClient

	mu      sync.Mutex
	current token
	flight  *flight // the request under way, if any
}

type token struct {
	value   string
	scope   *text     // as granted; nil when the answer does not say
	renew   time.Time // from when on a new one is asked for
	expires time.Time
}

// flight is one request for a token, that all who need one wait for.
type flight struct {
	done  chan struct{}
	token token
	err   error
}

// take returns a token that is valid for a while, and asks for one when there is none. Its error is a *RequestError or ctx's.
func (s *tokenSource) take(ctx context.Context) (token, error) {
	for {
		s.mu.Lock()
		if s.current.value != "" && time.Now().Before(s.current.renew) {
			defer s.mu.Unlock()
			return s.current, nil
		}
		under := s.flight
		if under == nil {
			s.flight = &flight{done: make(chan struct{})}
			s.mu.Unlock()
			return s.fly(ctx)
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return token{}, ctx.Err()
		case <-under.done:
		}
		if _, failed := errors.AsType[*RequestError](under.err); under.err == nil || failed {
			return under.token, under.err
		}
		// It ended because whoever asked gave up.
	}
}

// fly makes the request of s.flight.
func (s *tokenSource) fly(ctx context.Context) (token, error) {
	got, err := s.fetch(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	under := s.flight
	s.flight = nil
	defer close(under.done)
	if now := time.Now(); err != nil && s.current.value != "" && now.Before(s.current.expires) {
		// The old one is good for a while yet; do not ask before every request for another.
		const again = 5 * time.Second
		s.current.renew = now.Add(again)
		got, err = s.current, nil
	}
	if err == nil {
		s.current = got
	}
	under.token, under.err = got, err
	return got, err
}

// drop forgets the token if it is still the one that the vendor refused.
func (s *tokenSource) drop(refused string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.value == refused {
		s.current = token{}
	}
}

// tokenTimeout bounds one request for a token.
const tokenTimeout = 30 * time.Second

func (s *tokenSource) fetch(ctx context.Context) (token, error) {
	attempt, cancel := context.WithTimeoutCause(ctx, tokenTimeout, &timeoutError{tokenTimeout})
	defer cancel()
	req, err := s.request(attempt)
	if err != nil {
		return token{}, transient(err, s.redact)
	}
	got, err := exchange(s.tokens.transport, req, answerLimit)
	if ctx.Err() != nil {
		return token{}, ctx.Err()
	}
	if err == nil && got.ok() {
		err = got.cut
	}
	if err != nil {
		renew(s.tokens.transport)
		s.tokens.metrics.tokens.WithLabelValues(statusLabel(0)).Inc()
		return token{}, fromTokenService(transient(err, s.redact))
	}
	s.tokens.metrics.tokens.WithLabelValues(statusLabel(got.status)).Inc()
	if !got.ok() {
		return token{}, s.failure(got)
	}
	return s.parse(got)
}

// fromTokenService makes an error one of which the items know nothing.
func fromTokenService(e *RequestError) *RequestError {
	e.Reason, e.Unsent, e.Timeout = "token service: "+e.Reason, true, false
	return e
}

func (s *tokenSource) request(ctx context.Context) (*http.Request, error) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {s.client.id}, "client_secret": {s.client.secret}}
	if s.client.scope != "" {
		form.Set("scope", s.client.scope)
	}
	target, err := url.Parse(s.client.url)
	if err != nil {
		return nil, err
	}
	var content io.Reader
	if s.client.grant == grantQuery {
		query := target.Query()
		maps.Copy(query, form)
		target.RawQuery = query.Encode()
	} else {
		content = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), content)
	if err != nil {
		return nil, err
	}
	if s.client.grant == grantForm {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", s.tokens.agent)
	return req, nil
}

// failure says that the credentials are wrong, unless it is plain that the service has a bad day, or that it is another server. It is never
// about an item.
func (s *tokenSource) failure(got *answer) *RequestError {
	scheme, _, _ := strings.Cut(s.client.url, ":")
	e := refusal(got, strings.ToLower(scheme), "auth.url", s.redact)
	switch e.Class {
	case ClassTransient, ClassThrottled:
		e.Class = ClassTransient
	case ClassEndpoint:
	case ClassUnauthorized, ClassTooLarge, ClassBadRequest, ClassRejected:
		e.Class = ClassUnauthorized
	}
	return fromTokenService(e)
}

// parse reads {"access_token", "expires_in", "scope"}. How early a token is renewed: a minute, or a tenth of a short life.
func (s *tokenSource) parse(got *answer) (token, error) {
	const (
		early   = time.Minute
		unknown = 5 * time.Minute // when the service does not say how long it is good
		longest = 24 * time.Hour
	)
	var reply struct {
		AccessToken string `json:"access_token"`
		TokenType   text   `json:"token_type"`
		ExpiresIn   text   `json:"expires_in"`
		Scope       *text  `json:"scope"`
	}
	instead := got.read(&reply)
	switch {
	case instead != "":
	case reply.AccessToken == "" || !fitsHeader(reply.AccessToken):
		instead = "has no access_token"
	case reply.TokenType != "" && !strings.EqualFold(string(reply.TokenType), "bearer"):
		instead = "has a token_type other than Bearer"
	}
	if instead != "" {
		return token{}, fromTokenService(&RequestError{
			Class: ClassEndpoint, Status: got.status, Reason: "the answer " + instead + ": see auth.url", Answer: got.outline(s.redact),
		})
	}
	life := unknown
	if seconds, err := strconv.ParseFloat(string(reply.ExpiresIn), 64); err == nil && seconds > 0 {
		life = time.Duration(min(seconds, longest.Seconds()) * float64(time.Second))
	}
	expires := time.Now().Add(life)
	return token{value: reply.AccessToken, scope: reply.Scope, renew: expires.Add(-min(early, life/10)), expires: expires}, nil
}

func (s *tokenSource) redact(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return redact(text, s.client.secret, s.current.value)
}

// bearer is an authorizer by token.
type bearer struct {
	source         *tokenSource
	header, prefix string // "AccessToken: token" (Fanbase), "Authorization: Bearer token"
}

func (b bearer) authorize(ctx context.Context, header http.Header) (string, error) {
	t, err := b.source.take(ctx)
	if err != nil {
		return "", err
	}
	header.Set(b.header, b.prefix+t.value)
	return t.value, nil
}

func (b bearer) refused(credential string) bool {
	b.source.drop(credential)
	return true
}

func (b bearer) redact(text string) string { return b.source.redact(text) }

// check takes a token, so that wrong credentials show at start, and returns it with what there is to say.
func (b bearer) check(ctx context.Context) (t token, warnings []string) {
	t, err := b.source.take(ctx)
	if err != nil {
		return token{}, []string{"no token: " + err.Error()}
	}
	return t, nil
}

// fanbaseAuth is the token of a Fanbase client, which goes without "Bearer".
func fanbaseAuth(cfg Config, deps Deps) (bearer, error) {
	return tokenAuth(cfg, deps, grantQuery, bearer{header: "AccessToken"})
}

func fanaticsAuth(cfg Config, deps Deps) (bearer, error) {
	return tokenAuth(cfg, deps, grantForm, bearer{header: "Authorization", prefix: "Bearer "})
}

func tokenAuth(cfg Config, deps Deps, g grant, b bearer) (bearer, error) {
	if deps.Tokens == nil {
		return bearer{}, fmt.Errorf("sink %s: no token registry", cfg.Name)
	}
	source, err := deps.Tokens.source(g, cfg.Auth)
	if err != nil {
		return bearer{}, fmt.Errorf("sink %s: %w", cfg.Name, err)
	}
	b.source = source
	return b, nil
}
