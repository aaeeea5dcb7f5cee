package sinks

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode"
)

// reasonLimit bounds the vendor's words that are kept.
const reasonLimit = 4 << 10

// complaint finds the vendor's words, code and id of the call in the body of an answer that is no success. It knows the
// envelopes of all vendors and takes strings, numbers and arrays alike; a body in none of them is the reason itself.
func complaint(body []byte) (reason, code, trace string) {
	var envelope struct {
		Message          text `json:"message"`           // StopChurn
		ErrorDescription text `json:"error_description"` // OAuth 2.0
		Error            text `json:"error"`
		IMsg             text `json:"iMsg"` // Fanbase queue
		ICode            text `json:"iCode"`
		Header           struct {
			Codigo text `json:"codigo"`
			Msg    text `json:"msg"`
		} `json:"header"` // Fanbase
		Errors []struct {
			Code    text `json:"code"`
			Message text `json:"message"`
		} `json:"errors"` // Fanatics
		RC        text `json:"rc"`
		Timestamp text `json:"timestamp"`
	}
	if json.Unmarshal(body, &envelope) != nil {
		return bounded(string(body)), "", ""
	}
	var messages, codes []string
	for _, e := range envelope.Errors {
		messages = append(messages, string(e.Message))
		codes = append(codes, string(e.Code))
	}
	reason = first(strings.Join(messages, "; "), string(envelope.Message), string(envelope.ErrorDescription), string(envelope.Error),
		string(envelope.IMsg), string(envelope.Header.Msg), string(body))
	code = first(strings.Join(codes, "; "), string(envelope.ICode), string(envelope.Header.Codigo))
	return bounded(reason), bounded(code), call(envelope.RC, envelope.Timestamp)
}

// call is how Fanatics finds a call: its logs are partitioned by the time beside the id.
func call(rc, timestamp text) string {
	if rc == "" || timestamp == "" {
		return bounded(string(rc + timestamp))
	}
	return bounded(string(rc + " at " + timestamp))
}

// text is a JSON value of any type as words: a string without quotes, an array's elements joined, null as nothing.
type text string

// UnmarshalJSON accepts every JSON value.
func (t *text) UnmarshalJSON(value []byte) error {
	var s string
	var elements []text
	switch {
	case string(value) == "null":
		*t = ""
	case json.Unmarshal(value, &s) == nil:
		*t = text(s)
	case json.Unmarshal(value, &elements) == nil:
		words := make([]string, len(elements))
		for i, e := range elements {
			words[i] = string(e)
		}
		*t = text(strings.Join(words, "; "))
	default:
		*t = text(bytes.TrimSpace(value))
	}
	return nil
}

func first(candidates ...string) string {
	for _, c := range candidates {
		if strings.Trim(c, "; ") != "" {
			return c
		}
	}
	return ""
}

// bounded is a vendor's text in one line of valid UTF-8 that is not long.
func bounded(s string) string {
	const ellipsis = "…"
	if len(s) > reasonLimit {
		s = s[:reasonLimit-len(ellipsis)] + ellipsis
	}
	s = strings.ToValidUTF8(s, "")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s))
}
