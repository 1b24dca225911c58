//go:build !linux

package main

// noCore does nothing where there is no prctl.
func noCore() {}

// blankEnviron does nothing where the environment is not shown in /proc.
func blankEnviron() {}
