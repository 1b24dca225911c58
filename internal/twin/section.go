package twin

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/connected-registry/connected-registry/internal/registry"
	"github.com/connected-registry/connected-registry/internal/schedule"
)

// Limits of the numbers in the document.
const (
	maxParallel = 64
	minChunkKiB = 64
	maxChunkKiB = 64 << 10
	maxMiB      = 1 << 30 // 1 PiB
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func readMode(r reader, v value, c *registry.Config) {
	s, ok := asText(r.problems, "mode", v)
	if !ok {
		return
	}
	mode, err := registry.ParseMode(s)
	if err != nil {
		r.add("mode", "%s", strings.TrimPrefix(err.Error(), "mode "))
		return
	}
	c.Mode = mode
}

func readParent(r reader, v value, c *registry.Config) {
	o, ok := record(r.problems, "parent", v, "gatewayEndpoint", "protocol", "syncProperties")
	if !ok {
		return
	}
	o.text("gatewayEndpoint", func(s string) (err error) {
		if s == "" { // a registry without a parent
			return nil
		}
		c.Parent.GatewayEndpoint, err = ParseEndpoint(s, r.env)
		return err
	})
	o.choice("protocol", &c.Parent.Protocol, "https", "http")
	if c.Parent.Protocol == "http" && IsCloud(c.Parent.GatewayEndpoint) {
		r.add("parent.protocol", errCloudProtocol)
	}
	if v, ok := o.find("syncProperties"); ok {
		readSyncProperties(r, v, &c.Parent.SyncProperties)
	}
}

func readSyncProperties(r reader, v value, p *registry.SyncProperties) {
	o, ok := record(r.problems, "parent.syncProperties", v, "schedule", "syncWindow", "messageTtl", "conflict")
	if !ok {
		return
	}
	before := r.count
	continuous := true
	o.text("schedule", func(s string) error {
		parsed, err := schedule.Parse(s)
		p.Schedule, continuous = parsed.String(), parsed.Continuous()
		return err
	})
	o.text("syncWindow", func(s string) (err error) {
		p.SyncWindow, err = schedule.ParseDuration(s, MinSyncWindow, MaxSyncWindow)
		return err
	})
	o.text("messageTtl", func(s string) (err error) {
		p.MessageTTL, err = schedule.ParseDuration(s, MinMessageTTL, MaxMessageTTL)
		return err
	})
	conflict := string(p.Conflict)
	o.choice("conflict", &conflict, string(registry.NewestWins), string(registry.ParentWins))
	p.Conflict = registry.Conflict(conflict)
	if continuous {
		p.SyncWindow = 0
	} else if p.SyncWindow == 0 && r.count == before {
		o.problems.add(o.at("syncWindow"), "is required with a schedule that is not continuous: a duration from %s to %s",
			schedule.FormatDuration(MinSyncWindow), schedule.FormatDuration(MaxSyncWindow))
	}
}

func readRepositories(r reader, v value, c *registry.Config) {
	entries(r.problems, "repositories", v, func(path, key string, v value) {
		scope := registry.Scope{}
		words(r.problems, path, v, func(path string, list []string) {
			for _, word := range list {
				rule, err := ParseRule(word)
				if err != nil {
					r.add(path, "%s", err)
					continue
				}
				scope = append(scope, rule)
			}
		})
		c.Repositories[key] = scope
	})
}

func readTransfer(r reader, v value, c *registry.Config) {
	o, ok := record(r.problems, "transfer", v, "maxKiBps", "parallel", "chunkKiB", "rates", "budget")
	if !ok {
		return
	}
	o.number("maxKiBps", &c.Transfer.MaxKiBps, 0, registry.MaxKiBps)
	o.number("parallel", &c.Transfer.Parallel, 1, maxParallel)
	o.number("chunkKiB", &c.Transfer.ChunkKiB, minChunkKiB, maxChunkKiB)
	if v, ok := o.find("rates"); ok {
		c.Transfer.Rates = map[string]registry.RateWindow{}
		entries(r.problems, o.at("rates"), v, func(path, key string, v value) {
			s, ok := asText(r.problems, path, v)
			if !ok {
				return
			}
			w, err := registry.ParseRateWindow(s)
			if err != nil {
				r.add(path, "%q: %s", clip(s), err)
				return
			}
			c.Transfer.Rates[key] = w
		})
	}
	v, ok = o.find("budget")
	if !ok {
		return
	}
	if b, ok := record(r.problems, o.at("budget"), v, "hourMiB", "dayMiB", "monthMiB"); ok {
		b.number("hourMiB", &c.Transfer.Budget.HourMiB, 0, maxMiB)
		b.number("dayMiB", &c.Transfer.Budget.DayMiB, 0, maxMiB)
		b.number("monthMiB", &c.Transfer.Budget.MonthMiB, 0, maxMiB)
	}
}

func readServe(r reader, v value, c *registry.Config) {
	if o, ok := record(r.problems, "serve", v, "pullThrough"); ok {
		o.flag("pullThrough", &c.Serve.PullThrough)
	}
}

func readScopeMaps(r reader, v value, c *registry.Config) {
	entries(r.problems, "scopeMaps", v, func(path, key string, v value) {
		actions, seen := registry.ScopeMap{}, map[string]bool{}
		words(r.problems, path, v, func(path string, list []string) {
			for _, word := range list {
				action, err := ParseAction(word)
				if err != nil {
					r.add(path, "%s", err)
				} else if !seen[action] {
					seen[action] = true
					actions = append(actions, action)
				}
			}
		})
		c.ScopeMaps[key] = actions
	})
}

func readClientTokens(r reader, v value, c *registry.Config) {
	entries(r.problems, "clientTokens", v, func(path, key string, v value) {
		name := strings.ToLower(key)
		if _, ok := c.ClientTokens[name]; ok {
			r.add(path, "stands here twice: names of tokens do not differ in case")
			return
		}
		c.ClientTokens[name] = readClientToken(r, path, v, c.ScopeMaps)
	})
}

func readClientToken(r reader, path string, v value, scopeMaps map[string]registry.ScopeMap) registry.ClientToken {
	token := registry.ClientToken{Enabled: true}
	o, ok := record(r.problems, path, v, "scopeMap", "status", "password1", "expiry1", "password2", "expiry2")
	if !ok {
		return token
	}
	o.text("scopeMap", func(s string) error {
		token.ScopeMap = s
		if _, ok := scopeMaps[s]; !ok {
			return fmt.Errorf("there is no scope map %q", clip(s))
		}
		return nil
	})
	if _, ok := o.find("scopeMap"); !ok {
		r.add(o.at("scopeMap"), "is required: the name of a scope map")
	}
	status := "enabled"
	o.choice("status", &status, "enabled", "disabled")
	token.Enabled = status == "enabled"
	for _, n := range []string{"1", "2"} {
		if p, ok := readPassword(o, "password"+n, "expiry"+n); ok {
			token.Passwords = append(token.Passwords, p)
		}
	}
	return token
}

// readPassword reads one of the two passwords. The errors must not hold its value, in case it is the password itself.
func readPassword(o object, key, expiryKey string) (registry.TokenPassword, bool) {
	var p registry.TokenPassword
	o.text(key, func(s string) error {
		digits, ok := strings.CutPrefix(s, "sha256:")
		sum, err := hex.DecodeString(digits)
		if !ok || err != nil || len(sum) != len(p.SHA256) {
			return errors.New("want sha256: and the 64 hexadecimal digits of the password's SHA-256, never the password")
		}
		p.SHA256 = [32]byte(sum)
		return nil
	})
	o.text(expiryKey, func(s string) (err error) {
		if p.Expiry, err = time.Parse(time.RFC3339, s); err != nil {
			return fmt.Errorf("%q: want a time such as 2027-01-01T00:00:00Z", clip(s))
		}
		p.Expiry = p.Expiry.UTC()
		return nil
	})
	_, ok := o.find(key)
	if _, expires := o.find(expiryKey); expires && !ok {
		o.problems.add(o.at(expiryKey), "has no %s that it could end", key)
	}
	return p, ok
}

func readNotifications(r reader, v value, c *registry.Config) {
	entries(r.problems, "notifications", v, func(path, key string, v value) {
		s, ok := asText(r.problems, path, v)
		if !ok {
			return
		}
		if _, err := registry.ParseNotification(s); err != nil {
			r.add(path, "%s", err)
			return
		}
		c.Notifications[key] = s
	})
}

func readGarbageCollection(r reader, v value, c *registry.Config) {
	o, ok := record(r.problems, "garbageCollection", v, "enabled", "schedule")
	if !ok {
		return
	}
	o.flag("enabled", &c.GarbageCollection.Enabled)
	o.text("schedule", func(s string) error {
		parsed, err := schedule.Parse(s)
		c.GarbageCollection.Schedule = parsed.String()
		return err
	})
}

func readStorage(r reader, v value, c *registry.Config) {
	if o, ok := record(r.problems, "storage", v, "maxMiB", "reserveMiB"); ok {
		o.number("maxMiB", &c.Storage.MaxMiB, 0, maxMiB)
		o.number("reserveMiB", &c.Storage.ReserveMiB, 0, maxMiB)
	}
}

func readLogging(r reader, v value, c *registry.Config) {
	if o, ok := record(r.problems, "logging", v, "logLevel", "auditLogStatus"); ok {
		o.choice("logLevel", &c.Logging.LogLevel, "Debug", "Information", "Warning", "Error", "None")
		o.choice("auditLogStatus", &c.Logging.AuditLogStatus, "Enabled", "Disabled")
	}
}
