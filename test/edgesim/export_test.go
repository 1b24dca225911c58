package edgesim

// Waiting is how many methods wait for a module to subscribe.
func (d *Device) Waiting(module string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.modules[module]; s != nil {
		return len(s.waiting)
	}
	return 0
}
