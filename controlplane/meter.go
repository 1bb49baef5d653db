package controlplane

import (
	"encoding/pem"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicegate/sluice/internal/mtls"
)

// meter is what /metrics tells of a control plane. What can be counted when asked is counted then.
type meter struct {
	plane   *plane
	edits   atomic.Int64
	commits prometheus.Histogram
}

var (
	descEdits    = prometheus.NewDesc("sluice_controlplane_edits_total", "Edits that were committed.", nil, nil)
	descRevision = prometheus.NewDesc("sluice_controlplane_revision", "Head revision.", []string{"tenant"}, nil)
	descProxies  = prometheus.NewDesc("sluice_controlplane_proxies", "Connected proxies.", []string{"group"}, nil)
	descRefusals = prometheus.NewDesc("sluice_controlplane_refusals", "Resources that connected proxies refuse.", []string{"tenant"}, nil)
)

func newMeter(p *plane) *meter {
	return &meter{plane: p, commits: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "sluice_controlplane_commit_seconds", Help: "Time that a batch of edits took to reach stable storage.",
		Buckets: prometheus.ExponentialBuckets(0.0002, 2, 14),
	})}
}

func (m *meter) committed(edits int, took time.Duration) {
	m.edits.Add(int64(edits))
	m.commits.Observe(took.Seconds())
}

// Describe implements prometheus.Collector.
func (m *meter) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descEdits, descRevision, descProxies, descRefusals} {
		out <- d
	}
	m.commits.Describe(out)
}

// Collect implements prometheus.Collector.
func (m *meter) Collect(out chan<- prometheus.Metric) {
	out <- prometheus.MustNewConstMetric(descEdits, prometheus.CounterValue, float64(m.edits.Load()))
	m.commits.Collect(out)
	for _, v := range m.plane.publisher.Views() {
		out <- prometheus.MustNewConstMetric(descRevision, prometheus.GaugeValue, float64(v.Revision), v.Name)
	}
	proxies, refusals := map[string]int{}, map[string]int{}
	for _, p := range m.plane.server.Proxies() {
		proxies[p.Group]++
		for name, all := range p.Refusals {
			refusals[name] += len(all)
		}
	}
	for group, n := range proxies {
		out <- prometheus.MustNewConstMetric(descProxies, prometheus.GaugeValue, float64(n), group)
	}
	for name, n := range refusals {
		out <- prometheus.MustNewConstMetric(descRefusals, prometheus.GaugeValue, float64(n), name)
	}
}

// writeCA puts the CA's certificate where operators and their tools find it: no secret.
func writeCA(dir string, ca *mtls.CA) error {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw})
	return mtls.WriteFile(filepath.Join(dir, "ca.pem"), text)
}
