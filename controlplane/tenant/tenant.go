// Package tenant knows who owns configuration and who may act for whom: tenants and the groups that serve them,
// administrators by token, proxies by certificate, and the vault that keeps tenants' values sealed.
package tenant

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	// Default is the tenant of an installation that has one, and the group of proxies that were given none.
	Default = "default"
	// Platform is the space of the operator's own objects. It is no tenant: no tenant's name begins so.
	Platform = "_platform"

	maxName = 63
)

var nameForm = regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`)

// CheckName says whether name can name a tenant or a group (what is "tenant" or "group").
func CheckName(what, name string) error {
	if len(name) > maxName || !nameForm.MatchString(name) {
		return fmt.Errorf("%s name %q: use at most %d lower-case letters, digits and dashes, a letter first and no dash last", what, name, maxName)
	}
	return nil
}

// Info is what the cluster knows of a tenant beside its objects.
type Info struct {
	Name string `json:"-"`
	// Local powers that the platform grants, as `sluice tenant allow` takes them. Empty: none.
	Grants  []string  `json:"grants,omitempty"`
	Created time.Time `json:"created"`
}

// InfoPrefix begins the keys under which the cluster's space keeps each tenant's Info.
const InfoPrefix = "tenant/"

// Key is where the cluster's space keeps the Info.
func (i Info) Key() string { return InfoPrefix + i.Name }

// Encode is the value kept there.
func (i Info) Encode() []byte {
	value, err := json.Marshal(i)
	if err != nil {
		panic(err) // strings and a time always encode
	}
	return value
}

// DecodeInfo reads what Encode wrote under key.
func DecodeInfo(key string, value []byte) (Info, error) {
	var i Info
	if err := json.Unmarshal(value, &i); err != nil {
		return i, fmt.Errorf("record %s: %w", key, err)
	}
	i.Name = strings.TrimPrefix(key, InfoPrefix)
	return i, nil
}

// Served tells for each group the tenants that its proxies serve, in order. A group serves what its configuration
// names; [Default] serves in addition every tenant that no group names. Names of tenants that are not there are left out.
func Served(groups map[string][]string, tenants []string) map[string][]string {
	served := map[string][]string{Default: nil}
	known, named := map[string]bool{}, map[string]bool{}
	for _, name := range tenants {
		known[name] = true
	}
	for group, names := range groups {
		served[group] = nil
		for _, name := range names {
			named[name] = true
			if known[name] && !slices.Contains(served[group], name) {
				served[group] = append(served[group], name)
			}
		}
	}
	for _, name := range tenants {
		if !named[name] {
			served[Default] = append(served[Default], name)
		}
	}
	for _, names := range served {
		slices.Sort(names)
	}
	return served
}

// proxyName makes a wish usable as part of a SPIFFE ID.
func proxyName(wish string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '-', r == '.', r == '_':
			return r
		case 'A' <= r && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, wish)
	clean = strings.Trim(clean[:min(len(clean), maxName)], "-._")
	if clean == "" {
		return "proxy"
	}
	return clean
}
