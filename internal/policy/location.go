package policy

import (
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// location is a place of a credential in a request. Exactly one of header, query and cookie is set; it is
// comparable.
type location struct {
	header, prefix string
	query          string
	cookie         string
}

var bearer = location{header: "Authorization", prefix: "Bearer "}

// samePlace reports whether two locations cannot hold a credential each: they are one, or two prefixes of one header.
func (l location) samePlace(other location) bool {
	return l.header == other.header && l.query == other.query && l.cookie == other.cookie
}

// compileLocation returns bearer for an unset l.
func compileLocation(l *policyv1.Location, field string, errs *problems) location {
	switch p := l.GetPlace().(type) {
	case nil:
		if l != nil {
			errs.add(field, "says no place; write one of `header`, `queryParameter` and `cookie`")
		}
		return bearer
	case *policyv1.Location_Header:
		checkHeaderName(p.Header.GetName(), field+".header.name", errs)
		if !httpguts.ValidHeaderFieldValue(p.Header.GetPrefix()) {
			errs.add(field+".header.prefix", "holds what no header may")
		}
		return location{header: http.CanonicalHeaderKey(p.Header.GetName()), prefix: p.Header.GetPrefix()}
	case *policyv1.Location_QueryParameter:
		if p.QueryParameter.GetName() == "" {
			errs.add(field+".queryParameter.name", "is empty")
		}
		return location{query: p.QueryParameter.GetName()}
	case *policyv1.Location_Cookie:
		if !httpguts.ValidHeaderFieldName(p.Cookie.GetName()) {
			errs.add(field+".cookie.name", "%q is no name of a cookie", p.Cookie.GetName())
		}
		return location{cookie: p.Cookie.GetName()}
	}
	return bearer
}

// valid reports whether value can be carried at l without changing what stands around it.
func (l location) valid(value string) bool {
	switch {
	case l.header != "":
		return httpguts.ValidHeaderFieldValue(value) && strings.TrimSpace(value) == value
	case l.cookie != "":
		return !strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`",;\`, r) })
	}
	return true
}

// put writes value at l, in place of what stood there. It reports whether it could: a query needs u.
func (l location) put(h http.Header, u *url.URL, value string) bool {
	switch {
	case l.header != "":
		h[l.header] = []string{l.prefix + value}
	case l.cookie != "":
		cookies := []string{}
		for _, line := range h["Cookie"] {
			for part := range strings.SplitSeq(line, ";") {
				if name, _, _ := strings.Cut(strings.TrimSpace(part), "="); name != "" && name != l.cookie {
					cookies = append(cookies, strings.TrimSpace(part))
				}
			}
		}
		h["Cookie"] = []string{strings.Join(append(cookies, l.cookie+"="+value), "; ")}
	case u == nil:
		return false
	default:
		q := u.Query()
		q.Set(l.query, value)
		u.RawQuery = q.Encode()
	}
	return true
}

// get returns the credential at l, or false if there is none. Several of them are none that can be trusted:
// the empty credential, which no check accepts.
func (l location) get(r *http.Request) (string, bool) {
	switch {
	case l.header != "":
		values := r.Header[l.header]
		if len(values) == 0 {
			return "", false
		}
		if len(values) > 1 {
			return "", true
		}
		scheme := strings.TrimRight(l.prefix, " ")
		if len(values[0]) < len(l.prefix) || !strings.EqualFold(values[0][:len(l.prefix)], l.prefix) {
			// Another scheme in a shared header (`Basic …`) is no credential of ours; a bare scheme is a bad one.
			return "", strings.EqualFold(values[0], scheme)
		}
		return strings.TrimSpace(values[0][len(l.prefix):]), true
	case l.cookie != "":
		cookies := r.CookiesNamed(l.cookie)
		switch len(cookies) {
		case 0:
			return "", false
		case 1:
			return cookies[0].Value, true
		}
		return "", true
	}
	values := r.URL.Query()[l.query]
	switch len(values) {
	case 0:
		return "", false
	case 1:
		return values[0], true
	}
	return "", true
}
