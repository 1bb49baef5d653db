package policy

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func grants(t *testing.T, words ...string) Grants {
	t.Helper()
	g, err := ParseGrants(words)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGrantsOfNames(t *testing.T) {
	for _, tt := range []struct {
		grant                  string
		stdio, file, env       string // granted, separated by blanks
		noStdio, noFile, noEnv string
	}{
		{"", "", "", "", "npx", "/etc/x", "HOME"},
		{"stdio=npx", "npx", "", "", "/usr/bin/npx ./npx npx2 NPX", "/npx", "npx"},
		{"stdio=/opt/mcp/*", "/opt/mcp/a", "", "", "/opt/mcp/../../bin/sh /opt/mcp/a/b /opt/mcp/ a", "/opt/mcp/a", "A"},
		{"stdio", "npx /bin/sh", "", "", "", "/etc/x", "HOME"},
		{"stdio=*", "npx /bin/sh", "", "", "", "/etc/x", "HOME"},
		{"file=/etc/sluice/*", "", "/etc/sluice/a /etc/sluice/a.pem", "", "npx", "/etc/sluice/../passwd /etc/sluice/a/b /etc/sluice /etc/sluice/ /etc/sluice/./a //etc/sluice/a etc/sluice/a /etc/sluice/.. /etc/sluice2/a", "HOME"},
		{"file=/etc/sluice/**", "", "/etc/sluice/a /etc/sluice/a/b/c", "", "", "/etc/sluice /etc/sluice/../passwd /etc/sluice/a/../../passwd /etc/sluice2/a", ""},
		{"file=/etc/*/t/**", "", "/etc/x/t/a/b", "", "", "/etc/x/y/t/a /etc/x/t", ""},
		{"file=/a/b.pem", "", "/a/b.pem", "", "", "/a/c.pem", ""},
		{"file", "", "/etc/x relative ../x", "", "npx", "", "HOME"},
		{"env=SVC_*", "", "", "SVC_A SVC_", "", "", "SVC HOME XSVC_A SVC_A=B SLUICE_TOKEN"},
		{"env", "", "", "HOME", "", "", "SLUICE_TOKEN"},
		{"env=SLUICE_DEMO", "", "", "SLUICE_DEMO", "", "", "SLUICE_TOKEN HOME"},
		{"*", "npx", "/etc/x", "HOME", "", "", "SLUICE_TOKEN"},
		{"stdio=npx, file=/a/*,env=B", "npx", "/a/x", "B", "x", "/b", "C"},
	} {
		g := grants(t, tt.grant)
		for _, c := range []struct {
			of    func(string) bool
			names string
			want  bool
		}{{g.Stdio, tt.stdio, true}, {g.File, tt.file, true}, {g.Env, tt.env, true}, {g.Stdio, tt.noStdio, false}, {g.File, tt.noFile, false}, {g.Env, tt.noEnv, false}} {
			for _, name := range strings.Fields(c.names) {
				if c.of(name) != c.want {
					t.Errorf("%q: %s granted %v, want %v", tt.grant, name, !c.want, c.want)
				}
			}
		}
		if g.Stdio("") || g.File("") || g.Env("") || g.File("/a/\x00") || g.Stdio("a\x00") {
			t.Errorf("%q: grants a name that is none", tt.grant)
		}
	}
}

func TestParseGrantsRefuses(t *testing.T) {
	for _, word := range []string{"privat-network", "private-network=10.0.0.0/8", "stdio=", "file=etc", "file=/etc/../x", "file=/etc/", "file=/etc/[", "*=x", "all", "Stdio"} {
		if _, err := ParseGrants([]string{"stdio", word}); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%q: %v", word, err)
		}
	}
	if g := grants(t, "stdio=npx,private-network", "private-network", " env=A ,"); g.String() != "stdio=npx,private-network,env=A" {
		t.Errorf("String() = %q", g)
	}
}

func TestDial(t *testing.T) {
	const public, private, metadata, never = "public", "private-network", "metadata", ""
	for addr, needs := range map[string]string{
		"8.8.8.8": public, "2606:4700::1111": public, "::ffff:8.8.8.8": public, "64:ff9b::8.8.8.8": public, "100.63.255.255": public, "100.128.0.1": public, "172.32.0.1": public, "2002:0808:0808::1": public,
		"127.0.0.1": private, "127.255.0.9": private, "::1": private, "::ffff:127.0.0.1": private, "64:ff9b::127.0.0.1": private, "64:ff9b::10.0.0.1": private, "64:ff9b:1::10.0.0.1": private,
		"10.0.0.1": private, "172.16.0.1": private, "172.31.255.255": private, "192.168.1.1": private, "fd12::1": private, "fc00::1": private, "fec0::1": private,
		"169.254.1.1": private, "fe80::1": private, "fe80::1%eth0": private, "100.64.0.1": private, "198.18.0.1": private, "192.0.2.1": private, "2001:db8::1": private,
		"::10.0.0.1": private, "2002:0a00:0001::1": private, "2001:0:0808:0808::f5ff:fffe": private, "::ffff:0:10.0.0.1": private, "2606::5efe:10.0.0.1": private,
		"169.254.169.254": metadata, "::ffff:169.254.169.254": metadata, "64:ff9b::a9fe:a9fe": metadata, "2002:a9fe:a9fe::": metadata, "fd00:ec2::254": metadata, "100.100.100.200": metadata,
		"168.63.129.16": metadata, "169.254.170.2": metadata, "fd20:ce::254": metadata, "192.0.0.192": metadata, "::169.254.169.254": metadata,
		"0.0.0.0": never, "0.1.2.3": never, "::": never, "::ffff:0.0.0.0": never, "224.0.0.1": never, "ff02::1": never, "255.255.255.255": never, "240.0.0.1": never, "64:ff9b::224.0.0.1": never,
	} {
		a := netip.MustParseAddr(addr)
		for words, has := range map[string]string{"stdio,file,env": "", "private-network": private, "*": private, "metadata": metadata} {
			err := grants(t, words).Dial(a)
			want := needs == public || needs != never && needs == has
			if (err == nil) != want {
				t.Errorf("%s with %q: %v, want allowed %v", addr, words, err, want)
			}
			if ae, ok := errors.AsType[*AddressError](err); err != nil && (!ok || ae.Grant != needs) {
				t.Errorf("%s with %q: %v, want it to name the grant %q", addr, words, err, needs)
			}
		}
	}
	if grants(t, "*").Dial(netip.Addr{}) == nil {
		t.Error("dials no address")
	}
}

func TestGrantsOfIdentities(t *testing.T) {
	for words, want := range map[string]string{"": "", "private-network,metadata": "", "identity=aws": "aws", "identity=aws,identity=azure": "aws azure", "identity": "aws gcp azure", "identity=*": "aws gcp azure", "*": "aws gcp azure"} {
		g := grants(t, words)
		var got []string
		for _, cloud := range []string{"aws", "gcp", "azure", "", "*"} {
			if g.Identity(cloud) && len(cloud) > 1 {
				got = append(got, cloud)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q grants %v, want %s", words, got, want)
		}
	}
	for _, word := range []string{"identity=", "identity=ibm", "identity=aws*", "Identity"} {
		if _, err := ParseGrants([]string{word}); err == nil {
			t.Errorf("%q is a grant", word)
		}
	}
}

// A cloud's identity opens where that cloud hands out credentials, at its port, and nothing else.
func TestDialIdentity(t *testing.T) {
	for _, tt := range []struct {
		words, cloud, address string
		allowed               bool
	}{
		{"identity=aws", "aws", "169.254.169.254:80", true},
		{"identity=aws", "aws", "169.254.170.2:80", true},
		{"identity=aws", "aws", "[::ffff:169.254.169.254]:80", true},
		{"identity=aws", "aws", "169.254.169.254:8080", false},
		{"identity=aws", "aws", "169.254.169.253:80", false},
		{"identity=aws", "aws", "100.100.100.200:80", false},
		{"identity=aws", "aws", "10.0.0.1:80", false},
		{"identity=gcp", "gcp", "169.254.170.2:80", false},
		{"identity=gcp", "aws", "169.254.169.254:80", false},
		{"private-network", "aws", "169.254.169.254:80", false},
		{"", "azure", "169.254.169.254:80", false},
	} {
		g := grants(t, tt.words)
		err := g.allowIdentity(tt.cloud, netip.MustParseAddrPort(tt.address))
		if (err == nil) != tt.allowed {
			t.Errorf("%q: %s of %s: %v", tt.words, tt.address, tt.cloud, err)
		}
		if g.Dial(netip.MustParseAddrPort(tt.address).Addr()) == nil {
			t.Errorf("%q: %s is open to everything", tt.words, tt.address)
		}
	}
}

func TestDialContextChecksWhatItConnects(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		_, err := Grants{}.DialContext(t.Context(), "tcp", host+":"+port)
		if _, ok := errors.AsType[*AddressError](err); !ok {
			t.Errorf("%s without a grant: %v", host, err)
		}
		c, err := grants(t, "private-network").DialContext(t.Context(), "tcp", host+":"+port)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		c.Close()
	}
	if _, err := grants(t, "*").DialContext(t.Context(), "unix", "/tmp/x"); err == nil {
		t.Error("dialled a unix socket")
	}
}
