package api

import (
	"testing"

	fleetv1 "github.com/sluicegate/sluice/proto/gen/sluice/fleet/v1"
)

// A proxy that makes up its address hides no other from the group.
func TestVersionOfPeers(t *testing.T) {
	two := []*fleetv1.Peer{{Proxy: "a", Address: "192.0.2.1:1"}, {Proxy: "b", Address: "192.0.2.2:1"}}
	one := []*fleetv1.Peer{{Proxy: "a", Address: "192.0.2.1:1\nb 192.0.2.2:1"}}
	if versionOf(two) == versionOf(one) {
		t.Error("two lists have one version")
	}
}
