package policy

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestBearerPrincipal(t *testing.T) {
	for _, tt := range []struct {
		header []string
		token  string // "": none
		status int    // of the refusal
	}{
		{nil, "", 0},
		{[]string{"Basic eDp5"}, "", 0},
		{[]string{"Bearer tok"}, "tok", 0},
		{[]string{"bearer tok"}, "tok", 0},
		{[]string{"Bearer"}, "", 400},
		{[]string{"Bearer "}, "", 400},
		{[]string{"Bearer a", "Bearer b"}, "", 400},
		{[]string{"Bearer a", "Basic b"}, "", 400},
	} {
		p, err := BearerPrincipal(&http.Request{Header: http.Header{"Authorization": tt.header}})
		auth, _ := errors.AsType[*AuthError](err)
		switch {
		case tt.status != 0:
			if auth == nil || auth.Status != tt.status || p != nil {
				t.Errorf("%q: %v, %v, want %d", tt.header, p, err, tt.status)
			}
		case err != nil:
			t.Errorf("%q: %v", tt.header, err)
		case tt.token == "":
			if p != nil {
				t.Errorf("%q: %v", tt.header, p)
			}
		case p == nil || p.Token.Reveal() != tt.token || !p.Unverified || p.Claims != nil:
			t.Errorf("%q: %+v", tt.header, p)
		}
	}
	of := func(token string) *Principal {
		p, err := BearerPrincipal(&http.Request{Header: http.Header{"Authorization": {"Bearer " + token}}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	one, same, other := of("tok-1"), of("tok-1"), of("tok-2")
	if one.ID != same.ID || one.ID == other.ID {
		t.Errorf("IDs %q, %q, %q", one.ID, same.ID, other.ID)
	}
	shown, err := json.Marshal(one)
	if text := fmt.Sprintf("%v %+v %#v %s", one, *one, *one, shown); err != nil || strings.Contains(text, "tok-1") {
		t.Errorf("the token shows: %s %v", text, err)
	}
}

func TestSubject(t *testing.T) {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	of := func(claims string) string {
		return (&Principal{Token: NewSecret("h." + part(claims) + ".s")}).Subject()
	}
	ada := of(`{"iss":"i","sub":"ada"}`)
	if ada == "" || ada != of(`{"exp":1,"sub":"ada","iss":"i"}`) {
		t.Errorf("two tokens about one: %q", ada)
	}
	for _, claims := range []string{`{"iss":"i","sub":"bob"}`, `{"iss":"j","sub":"ada"}`, `{"sub":"ada"}`, `{"iss":"i\u0000ada","sub":"x"}`, `{"iss":"","sub":"i\u0000ada"}`} {
		if of(claims) == ada {
			t.Errorf("%s is about ada", claims)
		}
	}
	for _, claims := range []string{`{"iss":"i"}`, `{"iss":"i","sub":7}`, `[]`, ``} {
		if got := of(claims); got != "" {
			t.Errorf("%s: %q", claims, got)
		}
	}
	for _, token := range []string{"", "opaque", "a.b", "a.!.c"} {
		if got := (&Principal{Token: NewSecret(token)}).Subject(); got != "" {
			t.Errorf("%q: %q", token, got)
		}
	}
	if got := (*Principal)(nil).Subject(); got != "" {
		t.Errorf("nobody: %q", got)
	}
}
