package main

import (
	"os"

	"github.com/connected-registry/connected-registry/internal/twin"
)

// secretVariables are those whose value is a credential.
var secretVariables = []string{twin.EnvConnectionString, twin.EnvSyncTokenPassword}

// takeSecrets returns how to look up the environment, and takes the credentials out of it: a process that is started
// does not inherit them, and /proc/<pid>/environ does not show them.
func takeSecrets() func(name string) (string, bool) {
	taken := map[string]string{}
	for _, name := range secretVariables {
		if v, ok := os.LookupEnv(name); ok {
			taken[name] = v
			_ = os.Unsetenv(name) // the name is a good one
		}
	}
	if len(taken) > 0 {
		blankEnviron()
	}
	return func(name string) (string, bool) {
		if v, ok := taken[name]; ok {
			return v, true
		}
		return os.LookupEnv(name)
	}
}
