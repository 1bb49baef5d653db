package policy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Grants are the local powers that the platform gives a tenant. The zero value gives none.
type Grants struct {
	words             []string
	private, metadata bool
	stdio, file, env  []string // patterns; "*" alone is everything
	identity          []string // clouds; "*" is any
}

// ParseGrants reads grants, each of which may be several separated by commas:
//
//	private-network    addresses that are private, loopback, link-local or shared (CGNAT)
//	metadata           addresses of cloud metadata services, which nothing else grants
//	stdio=npx          a command of stdio targets, as the configuration writes it
//	file=/etc/sluice/* a file that proxies read: * stays within a directory, ** does not
//	env=SVC_*          an environment variable of proxies; stdio children inherit those granted, beside PATH and the like
//	identity=aws       the identity that the proxy itself has at a cloud: aws, gcp or azure
//	stdio, file, env, identity   any of the kind; so does stdio=* …
//	*                  everything but metadata
//
// A variable of the proxy's own (SLUICE_*) is granted by a pattern that begins so, and by nothing else.
func ParseGrants(words []string) (Grants, error) {
	var g Grants
	var errs []error
	for _, list := range words {
		for word := range strings.SplitSeq(list, ",") {
			word = strings.TrimSpace(word)
			if word == "" {
				continue
			}
			if err := g.parse(word); err != nil {
				errs = append(errs, fmt.Errorf("grant %q: %w", word, err))
			} else if !slices.Contains(g.words, word) {
				g.words = append(g.words, word)
			}
		}
	}
	return g, errors.Join(errs...)
}

func (g *Grants) parse(word string) error {
	kind, pattern, with := strings.Cut(word, "=")
	if !with {
		pattern = "*"
	}
	switch kind {
	case "private-network", "metadata", "*":
		if with {
			return fmt.Errorf("takes no value; write %s alone", kind)
		}
	case "stdio", "file", "env", "identity":
		if pattern == "" {
			return fmt.Errorf("has no value; write %s=NAME, or %s alone for any", kind, kind)
		}
		if _, err := path.Match(pattern, ""); err != nil {
			return errors.New("is no pattern: a [ or \\ stands for something else in it")
		}
	default:
		return errors.New("unknown; grants are private-network, metadata, stdio, file, env, identity and *")
	}
	switch kind {
	case "private-network":
		g.private = true
	case "metadata":
		g.metadata = true
	case "stdio":
		g.stdio = append(g.stdio, pattern)
	case "file":
		if pattern != "*" && (!strings.HasPrefix(pattern, "/") || pattern != path.Clean(pattern)) {
			return errors.New("is no clean absolute path; write it from / on, without .., . or a slash at its end")
		}
		g.file = append(g.file, pattern)
	case "env":
		g.env = append(g.env, pattern)
	case "identity":
		if _, known := identityAddresses[pattern]; !known && pattern != "*" {
			return fmt.Errorf("is no cloud; write identity=%s, or identity alone for any", strings.Join(sortedKeys(identityAddresses), ", identity="))
		}
		g.identity = append(g.identity, pattern)
	case "*":
		g.private = true
		g.stdio, g.file, g.env = append(g.stdio, "*"), append(g.file, "*"), append(g.env, "*")
		g.identity = append(g.identity, "*")
	}
	return nil
}

// Words returns what ParseGrants read, one grant each.
func (g Grants) Words() []string { return slices.Clone(g.words) }

func (g Grants) String() string { return strings.Join(g.words, ",") }

// Stdio reports whether stdio targets may run cmd, written like this in their configuration.
func (g Grants) Stdio(cmd string) bool {
	if cmd == "" || strings.ContainsRune(cmd, 0) {
		return false
	}
	for _, pattern := range g.stdio {
		if pattern == "*" || pattern == cmd {
			return true
		}
		// A pattern of a path must not be left by way of `..`, nor one of a name match a path.
		if ok, _ := path.Match(pattern, cmd); ok && cmd == path.Clean(cmd) {
			return true
		}
	}
	return false
}

// File reports whether policies may name file. A relative path, or one with `..`, is granted only with all
// files. Links are followed when the file is read: who may write into a granted directory may point anywhere.
func (g Grants) File(file string) bool {
	if file == "" || strings.ContainsRune(file, 0) {
		return false
	}
	clean := filepath.IsAbs(file) && filepath.Clean(file) == file
	for _, pattern := range g.file {
		if pattern == "*" || clean && matchPath(pattern, file) {
			return true
		}
	}
	return false
}

// matchPath is path.Match with a final `/**` for everything below.
func matchPath(pattern, file string) bool {
	below, deep := strings.CutSuffix(pattern, "/**")
	if !deep {
		ok, _ := path.Match(pattern, file)
		return ok
	}
	parts, want := strings.Split(file, "/"), strings.Split(below, "/")
	if len(parts) <= len(want) {
		return false
	}
	ok, _ := path.Match(below, strings.Join(parts[:len(want)], "/"))
	return ok
}

// Env reports whether policies may name a variable of the proxy's environment.
func (g Grants) Env(name string) bool {
	if !envName.MatchString(name) {
		return false
	}
	for _, pattern := range g.env {
		if strings.HasPrefix(name, "SLUICE_") && !strings.HasPrefix(pattern, "SLUICE_") {
			continue
		}
		if ok, _ := path.Match(pattern, name); ok {
			return true
		}
	}
	return false
}

// Identity reports whether policies may act as the proxy itself at a cloud: aws, gcp or azure.
func (g Grants) Identity(cloud string) bool {
	return slices.Contains(g.identity, "*") || slices.Contains(g.identity, cloud)
}

// AddressError refuses an address to dial.
type AddressError struct {
	Addr  netip.Addr
	Class string // e.g. `a loopback address`
	Grant string // what would grant it; empty: nothing
}

func (e *AddressError) Error() string {
	if e.Grant == "" {
		return fmt.Sprintf("address %s is %s, which nothing may dial", e.Addr, e.Class)
	}
	return fmt.Sprintf("address %s is %s; the tenant needs the grant %s (sluice tenant allow)", e.Addr, e.Class, e.Grant)
}

// Dial returns nil if addr may be dialled, else an *AddressError. Anyone may dial public addresses.
func (g Grants) Dial(addr netip.Addr) error {
	addr = addr.WithZone("")
	for _, a := range embedded(addr) {
		class, grant := classify(a)
		switch {
		case class == "", grant == "private-network" && g.private, grant == "metadata" && g.metadata:
		default:
			return &AddressError{Addr: addr, Class: class, Grant: grant}
		}
	}
	return nil
}

// embedded returns addr and the IPv4 addresses in it, to which a network may translate it.
func embedded(addr netip.Addr) []netip.Addr {
	if addr.Is4In6() {
		return []netip.Addr{addr.Unmap()}
	}
	all := []netip.Addr{addr}
	if !addr.Is6() {
		return all
	}
	b := addr.As16()
	v4 := func(at int) netip.Addr { return netip.AddrFrom4([4]byte(b[at : at+4])) }
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(addr), // NAT64
		netip.MustParsePrefix("64:ff9b:1::/48").Contains(addr),            // NAT64 of one's own, at /96
		netip.MustParsePrefix("::ffff:0:0:0/96").Contains(addr),           // SIIT
		netip.MustParsePrefix("::/96").Contains(addr) && b[12]|b[13] != 0: // IPv4-compatible
		all = append(all, v4(12))
	case netip.MustParsePrefix("2002::/16").Contains(addr): // 6to4
		all = append(all, v4(2))
	case netip.MustParsePrefix("2001::/32").Contains(addr): // Teredo: server, and the client inverted
		client := netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})
		all = append(all, v4(4), client)
	case b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe: // ISATAP
		all = append(all, v4(12))
	}
	return all
}

// metadataPrefixes are where clouds hand out credentials to whoever can reach them.
var metadataPrefixes = prefixes(
	"169.254.169.0/24", "169.254.170.0/24", // AWS, GCP, Azure, Oracle and others; ECS and EKS
	"169.254.42.42/32", "fd00:42::42/128", // Scaleway
	"fd00:ec2::/32", "fd20:ce::254/128", // AWS, GCP
	"100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", // Alibaba, Azure, Oracle
)

var classes = []struct {
	prefixes []netip.Prefix
	class    string
	grant    string
}{
	{metadataPrefixes, "the address of a cloud's metadata service", "metadata"},
	{prefixes("0.0.0.0/8", "::/128"), "unspecified", ""},
	{prefixes("224.0.0.0/4", "ff00::/8"), "a multicast address", ""},
	{prefixes("240.0.0.0/4"), "reserved", ""},
	{prefixes("127.0.0.0/8", "::1/128"), "a loopback address", "private-network"},
	{prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"), "a private address", "private-network"},
	{prefixes("169.254.0.0/16", "fe80::/10"), "a link-local address", "private-network"},
	{prefixes("100.64.0.0/10"), "a shared (CGNAT) address", "private-network"},
	{prefixes("192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "192.88.99.0/24",
		"64:ff9b:1::/48", "100::/64", "2001:2::/48", "2001:db8::/32", "3fff::/20", "5f00::/16"), "an address for special use", "private-network"},
}

func classify(addr netip.Addr) (class, grant string) {
	if !addr.IsValid() {
		return "no address", ""
	}
	for _, c := range classes {
		if slices.ContainsFunc(c.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) }) {
			return c.class, c.grant
		}
	}
	return "", ""
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// identityAddresses are where clouds hand out the credentials of a machine, container or pod, at port 80. All are
// [metadataPrefixes] too.
var identityAddresses = map[string][]netip.Addr{
	"aws":   {metadata, netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("169.254.170.2"), netip.MustParseAddr("169.254.170.23"), netip.MustParseAddr("fd00:ec2::23")},
	"gcp":   {metadata, netip.MustParseAddr("fd20:ce::254")},
	"azure": {metadata},
}

var metadata = netip.MustParseAddr("169.254.169.254")

// dialIdentity dials as DialContext does, and also where a cloud hands out credentials, if its identity is granted. Only what
// asks for nothing but the credential may have it.
func (g Grants) dialIdentity(cloud string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return dial(ctx, network, address, func(to netip.AddrPort) error { return g.allowIdentity(cloud, to) })
	}
}

func (g Grants) allowIdentity(cloud string, to netip.AddrPort) error {
	if g.Identity(cloud) && to.Port() == 80 && slices.Contains(identityAddresses[cloud], to.Addr().Unmap().WithZone("")) {
		return nil
	}
	return g.Dial(to.Addr())
}

// DialContext dials like net.Dialer, tcp alone, and connects to no address that Dial refuses. It looks at
// the very address of each connection attempt, so what a name resolves to later changes nothing.
func (g Grants) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return dial(ctx, network, address, func(to netip.AddrPort) error { return g.Dial(to.Addr()) })
}

func dial(ctx context.Context, network, address string, allowed func(netip.AddrPort) error) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, fmt.Errorf("dial %s %s: only tcp", network, address)
	}
	d := net.Dialer{Timeout: 30 * time.Second, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("dial %s: no address", address)
		}
		return allowed(to)
	}}
	return d.DialContext(ctx, network, address)
}
