package nested

import (
	"net/http"
	"strings"
	"testing"

	"github.com/connected-registry/connected-registry/internal/registry"
)

// refused is how ACR says that the modes of parent and child do not fit together.
const refused = "Can't create the registry 'below' with mode 'ReadWrite' when the connected registry parent 'above' mode is 'ReadOnly'. " +
	"For more information on connected registries please visit https://aka.ms/acr/connected-registry."

// TestReadOnlyParent turns a child that is in sync into a ReadWrite one below a ReadOnly parent: both refuse, the child
// serves what it has, and it goes on when the mode is put right. Then it is the parent's mode that changes.
func TestReadOnlyParent(t *testing.T) {
	cloud := startOlareg(t)
	first := push(t, cloud, "acme/app:1", artifact(t, "one"))
	above := newNode(t, "above", cloud)
	link := newLink(t, above.addr)
	below := newNode(t, "below", link.Addr())
	for _, l := range []*node{above, below} {
		l.doc["repositories"] = map[string]string{"all": "acme/app"}
		l.start()
	}
	below.has("acme/app", "1", first)

	isRefused := func(s registry.Status) bool {
		return strings.Contains(detail(s, "ParentRefused"), refused) && s.ConnectionState == registry.Unhealthy
	}
	goesOn := func() {
		t.Helper()
		if a := below.ask(http.MethodGet, "/v2/acme/app/manifests/1"); a.status != http.StatusOK {
			t.Errorf("a child that is refused answers %d: %s", a.status, a.body)
		}
	}
	below.doc["mode"] = "ReadWrite"
	below.configure()
	below.untilStatus("the child refuses", isRefused)
	goesOn()
	a := ask(t, above.addr, http.MethodGet, registry.LayerPath, map[string]string{
		registry.HeaderChildName: "below", registry.HeaderChildMode: "ReadWrite", registry.HeaderChildInstance: "another",
	})
	if a.status != http.StatusConflict || !strings.Contains(string(a.body), strings.ReplaceAll(refused, "'", `'`)) {
		t.Errorf("the parent answers %d: %s", a.status, a.body)
	}
	if _, err := below.sync(); err == nil || !strings.Contains(err.Error(), refused) {
		t.Errorf("sync says %v", err)
	}

	second := push(t, cloud, "acme/app:2", artifact(t, "two"))
	_, err := above.sync()
	must(t, err)
	if got := below.tags("acme/app"); len(got) != 1 {
		t.Errorf("a child that is refused has %v", got)
	}
	below.doc["mode"] = "ReadOnly"
	below.configure()
	below.has("acme/app", "2", second)

	above.doc["mode"], below.doc["mode"] = "ReadWrite", "ReadWrite"
	above.configure()
	above.untilStatus("it is ReadWrite", func(s registry.Status) bool { return s.Mode == registry.ReadWrite })
	below.configure()
	below.untilStatus("two ReadWrite fit together", func(s registry.Status) bool {
		return s.Mode == registry.ReadWrite && s.Parent.Mode == registry.ReadWrite && len(s.StatusDetails) == 0 && s.Sync.SyncState == registry.SyncSucceeded
	})
	above.doc["mode"] = "ReadOnly"
	above.configure()
	above.untilStatus("it is ReadOnly", func(s registry.Status) bool { return s.Mode == registry.ReadOnly })
	_, _ = below.sync() // which is when the two meet
	below.untilStatus("the child learns of the parent's mode", isRefused)
	goesOn()
}

// TestLoop puts two registries above each other, and one above itself.
func TestLoop(t *testing.T) {
	toOne, toTwo := newNode(t, "one", ""), newNode(t, "two", "")
	one, two := newNode(t, "one", newLink(t, toTwo.addr).Addr()), newNode(t, "two", newLink(t, toOne.addr).Addr())
	one.addr, two.addr = toOne.addr, toTwo.addr
	self := newNode(t, "self", "")
	self.doc["parent"] = newNode(t, "", newLink(t, self.addr).Addr()).doc["parent"]
	for _, l := range []*node{one, two, self} {
		l.doc["repositories"] = map[string]string{"all": "acme/app"}
		l.start()
	}
	self.untilStatus("it sees that it is its own parent", func(s registry.Status) bool {
		return s.ConnectionState == registry.Unhealthy && strings.Contains(detail(s, "ParentRefused"), "leads to this registry itself")
	})
	var reported string
	one.until("one of the two sees the loop", func() bool {
		reported = detail(one.status(), "ParentRefused") + detail(two.status(), "ParentRefused")
		return reported != ""
	})
	if !strings.Contains(reported, "stands below this registry") {
		t.Errorf("reported: %s", reported)
	}
	for _, l := range []*node{one, two, self} { // nobody waits for anybody
		if a := l.ask(http.MethodGet, "/v2/acme/app/manifests/1"); a.status/100 == 2 || a.took > patience/10 {
			t.Errorf("%s: %d after %v: %s", l.name, a.status, a.took, a.body)
		}
		_, _ = l.sync()
	}
}
